"""Every command does its job on a small real model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import greencc as api
from greencc.cli.types import EFFORTS, PRECISIONS, PROTOCOLS, TRACE_FORMATS
from greencc.compiler import doctor
from greencc.compiler.campaign_files import TraceFormat
from greencc.compiler.options import Effort, Precision
from greencc.core.errors import ExitCode, InputError
from greencc.core.meter import Grade
from greencc.core.recipe import load_recipe
from greencc.core.report import Accuracy
from greencc.measure import protocols
from greencc.meters import MeterProbe
from greencc.passes import PASSES
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.report import parse_report
from greencc.targets import TARGETS

COMMANDS = {
    "compile",
    "verify",
    "recover",
    "measure",
    "estimate",
    "lab",
    "devices",
    "cache",
    "tune",
    "run",
    "trust",
    "inspect",
    "lint",
    "targets",
    "passes",
    "doctor",
    "explain",
    "report",
}
COMPILE = ("compile", "model.onnx", "-c", "calibration.npz", "--eval", "eval.npz", "--effort", "quick")
INT8 = (*COMPILE, "--precision", "int8")

# What a reader of report.json may rely on; the parts of a dotted key are nested.
FIGURES = (
    "latency_ms.median", "latency_ms.p95", "size_bytes", "accuracy",
    "energy_mj.value", "energy_mj.low", "energy_mj.high", "energy_mj.grade", "energy_mj.boundary",
)  # fmt: skip
STABLE_KEYS = (
    "schema", "model.name", "model.sha256", "model.params", "model.macs", "target", "device",
    *(f"{side}.{key}" for side in ("baseline", "artifact") for key in FIGURES),
    *(f"ratio.{what}.{key}" for what in ("latency", "energy", "size") for key in ("value", "low", "high")),
    "accuracy.metric", "accuracy.baseline", "accuracy.artifact", "accuracy.drop", "accuracy.low", "accuracy.high",
    "accuracy.agreement", "accuracy.n", "accuracy.certified", "accuracy.epsilon", "accuracy.confidence",
    "budget.asked", "budget.met", "passes", "calibration.source", "calibration.digest", "calibration.n",
    "compile.seconds", "compile.peak_rss_mb",
)  # fmt: skip
PASS_KEYS = {"name", "options", "changed", "error", "findings", "seconds"}


def at(data: dict, dotted: str) -> object:
    for key in dotted.split("."):
        data = data[key]
    return data


def flat(text: str) -> str:
    return " ".join(text.split())


def process(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


# Help.


def test_help_lists_the_commands(greencc):
    for arguments in ((), ("-h",), ("--help",)):
        outcome = greencc(*arguments)
        assert outcome.code == ExitCode.OK
        assert outcome.err == ""
        assert set(re.findall(r"^  ([a-z]+)  ", outcome.out.split("Commands:")[1], re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_a_command(name, greencc):
    outcome = greencc(name, "--help")
    assert outcome.code == ExitCode.OK
    assert outcome.out.startswith(f"Usage: greencc {name} [OPTIONS]")
    assert outcome.err == ""


@pytest.mark.parametrize("arguments", [["--help"], ["compile", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    """`greencc --help` answers at once because it imports neither NumPy, ONNX nor a runtime."""
    program = (
        "import atexit, sys\n"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'onnxscript', 'scipy', 'rich', 'jinja2'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        "from greencc.cli.main import run\n"
        "run()\n"
    )
    done = process("-c", program, *arguments)
    assert done.returncode == ExitCode.OK
    assert done.stderr == "[]\n"
    assert done.stdout


def test_module_is_the_command_line():
    done = process("-m", "greencc", "--version")
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    assert done.stdout == f"greencc, version {api.__version__}\n"


@pytest.mark.parametrize("arguments", ["passes", "targets --json", "--help"])
def test_a_reader_that_leaves_is_no_error(arguments):
    """As in `greencc passes | head -1`, with a pipe whose other end is closed from the start."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        command = [sys.executable, "-m", "greencc", *arguments.split()]
        done = subprocess.run(
            command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert done.returncode == ExitCode.OK
    assert done.stderr == ""


def test_repeated_enums_equal_the_real_ones():
    assert tuple(item.value for item in Effort) == EFFORTS
    assert tuple(item.name for item in protocols.PROTOCOLS) == PROTOCOLS
    assert tuple(item.value for item in TraceFormat) == TRACE_FORMATS
    assert tuple(item.value for item in Precision) == PRECISIONS


def test_exit_codes_are_the_documented_ones():
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0, "INTERNAL": 1, "USAGE": 2, "LIMIT": 3, "BAD_INPUT": 4, "UNAVAILABLE": 5, "INTERRUPTED": 130,
    }  # fmt: skip


# compile


def test_compile_prints_a_table_and_the_path_of_the_report(digits, greencc, brief):
    outcome = greencc(*COMPILE)
    assert outcome.code == ExitCode.OK, outcome.err
    assert outcome.err == ""
    for word in ("Baseline", "Artifact", "Latency", "Size", "accuracy", "Report: model.greencc/report.html"):
        assert word in outcome.out
    assert Path("model.greencc/report.html").is_file()
    assert api.load("model.greencc").report.verdict.split(". ")[0] in flat(outcome.out)


def test_the_original_is_measured_like_any_other_form(digits, greencc, brief, monkeypatch):
    """When the model is kept as it came, no cache of outputs speeds one of the sides up."""
    from greencc.compiler import compile as module
    from greencc.targets._ort import OrtEngine

    measured = []
    genuine = module.measure_variants

    def measure_variants(session, device, baseline, artifact, *rest, **more):
        measured.extend([baseline.engine, artifact.engine])
        return genuine(session, device, baseline, artifact, *rest, **more)

    monkeypatch.setattr(module, "measure_variants", measure_variants)
    outcome = greencc(*COMPILE, "--json")
    report = parse_report(outcome.out)
    assert report.precision == "original"
    assert report.artifact.size_bytes == report.baseline.size_bytes
    assert [type(engine) for engine in measured] == [OrtEngine, OrtEngine]


def test_compile_json_prints_the_report_and_nothing_else(digits, greencc, brief):
    outcome = greencc(*INT8, "--json", "-o", "x.greencc")
    assert outcome.code == ExitCode.OK, outcome.err
    assert outcome.out == Path("x.greencc/report.json").read_text()
    assert outcome.err == ""


def test_report_has_the_stable_keys(bundle):
    data = json.loads((bundle / "report.json").read_text())
    for key in STABLE_KEYS:
        at(data, key)
    assert data["passes"]
    for record in data["passes"]:
        assert record.keys() >= PASS_KEYS
    assert data["model"]["params"] == 64 * 48 + 48 + 48 * 10 + 10
    assert data["model"]["macs"] == 64 * 48 + 48 * 10
    assert data["artifact"]["size_bytes"] < 0.6 * data["baseline"]["size_bytes"]
    assert data["accuracy"]["n"] == 523
    assert data["accuracy"]["baseline"] > 0.9
    assert data["calibration"]["n"] == 200
    assert data["budget"]["met"] is (True if data["accuracy"]["certified"] else None)
    assert data["artifact"]["latency_ms"]["median"] > 0
    assert data["artifact"]["peak_memory_mb"] > 0


def test_two_compiles_give_the_same_bytes(bundle, digits, brief):
    """By another way in, with other measurements: only the report may differ."""
    again = api.compile(
        "model.onnx",
        calibration="calibration.npz",
        evaluation=Path("eval.npz"),
        precision="int8",
        effort="quick",
        output="again.greencc",
    )
    for name in ("artifact/model.onnx", "recipe.toml"):
        assert (again.path / name).read_bytes() == (bundle / name).read_bytes()
    first, second = (json.loads((path / "manifest.json").read_text()) for path in (bundle, again.path))
    for data in (first, second):
        for name in ("report.json", "report.html", "report.md"):
            del data["files"][name]
    assert first == second


def test_recipe_of_a_bundle_compiles_again(bundle, digits, greencc, brief):
    outcome = greencc(*COMPILE, "--recipe", bundle / "recipe.toml", "-o", "again.greencc")
    assert outcome.code == ExitCode.OK, outcome.err
    assert Path("again.greencc/recipe.toml").read_bytes() == (bundle / "recipe.toml").read_bytes()
    assert (
        Path("again.greencc/artifact/model.onnx").read_bytes()
        == (bundle / "artifact/model.onnx").read_bytes()
    )
    assert api.load("again.greencc").report.precision == "int8"


def test_recipe_options_are_used(digits, greencc, brief):
    Path("r.toml").write_text(
        'schema = "greencc.recipe/1"\n[[pass]]\nname = "quantize-int8"\nmethod = "percentile"\n'
        'percentile = 99\nexclude = ["head"]\n'
    )
    (step,) = load_recipe(Path("r.toml"), PASSES)
    assert isinstance(step, QuantizeInt8)
    outcome = greencc(*COMPILE, "--recipe", "r.toml", "--max-drop", "50%", "-o", "x.greencc", "--json")
    assert outcome.code == ExitCode.OK, outcome.err
    (record,) = parse_report(outcome.out).passes
    assert record.options["percentile"] == 99.0
    assert record.options["method"] == "percentile"
    assert record.options["exclude"] == ["head"]
    assert record.changed == 1
    assert load_recipe(Path("x.greencc/recipe.toml"), PASSES) == (step,)


def test_force_replaces_a_bundle(bundle, digits, greencc, brief):
    before = (bundle / "manifest.json").read_bytes()
    arguments = (*COMPILE, "--precision", "fp32", "-o", str(bundle))
    assert greencc(*arguments).code == ExitCode.BAD_INPUT
    assert (bundle / "manifest.json").read_bytes() == before
    outcome = greencc(*arguments, "--force")
    assert outcome.code == ExitCode.OK, outcome.err
    assert api.load(bundle).report.precision == "fp32"
    assert sorted(path.name for path in digits.iterdir() if path.name.startswith(".")) == []


def test_compile_without_data_is_not_certified(digits, greencc, brief):
    outcome = greencc("compile", "model.onnx", "--effort", "quick", "--json")
    assert outcome.code == ExitCode.OK, outcome.err
    report = parse_report(outcome.out)
    assert report.precision in ("original", "fp32")
    assert not report.accuracy.certified
    assert any("no evaluation data was given" in warning for warning in report.warnings)
    assert any("INT8 was not considered" in warning for warning in report.warnings)


def test_options_reach_the_compile(digits, greencc, brief):
    with np.load("eval.npz") as archive:
        np.savez("unlabelled.npz", pixels=archive["pixels"])
        Path("labels.csv").write_text("\n".join(map(str, archive["labels"])))
    Path("metric_of_a_test.py").write_text(
        "def right(outputs, labels, feeds):\n    return (outputs['logits'].argmax(1) == labels).astype(float)\n"
    )
    options = (
        "-t", "cpu:threads=1", "-c", "calibration.npz", "--eval", "unlabelled.npz", "--labels", "labels.csv",
        "--metric", "metric_of_a_test:right", "--precision", "int8", "--max-drop", "2.5%", "--confidence", "0.9",
        "--samples", "50", "--effort", "quick", "--seed", "7", "-o", "a/b/x.greencc", "--json",
    )  # fmt: skip
    outcome = greencc("compile", "model.onnx", *options)
    assert outcome.code == ExitCode.OK, outcome.err
    report = parse_report(outcome.out)
    assert report.target == "cpu:threads=1"
    assert report.calibration is not None
    assert report.calibration.n == 50
    assert report.accuracy.metric == "metric_of_a_test:right"
    assert (report.accuracy.epsilon, report.accuracy.confidence) == (0.025, 0.9)
    assert report.accuracy.baseline is not None
    assert report.accuracy.baseline > 0.9
    assert report.budget.asked["max_drop"] == 0.025
    assert Path("a/b/x.greencc/manifest.json").is_file()


# The other commands.


def test_verify_checks_the_hashes(bundle, greencc):
    outcome = greencc("verify", bundle)
    assert (outcome.code, outcome.out, outcome.err) == (
        ExitCode.OK, "digits.greencc: every file matches its hash\n", "",
    )  # fmt: skip
    outcome = greencc("verify", bundle, "--json")
    assert json.loads(outcome.out) == {"bundle": "digits.greencc", "hashes": "ok", "accuracy": None}


def test_verify_compares_with_the_model(bundle, greencc):
    arguments = ("verify", bundle, "--model", "model.onnx", "--eval", "eval.npz")
    outcome = greencc(*arguments)
    assert outcome.code == ExitCode.OK, outcome.err
    assert re.search(r"^top-1 accuracy \(logits\): 0\.9\d+ -> 0\.9\d+$", outcome.out, re.MULTILINE)
    assert "certified" in outcome.out
    data = json.loads(greencc(*arguments, "--json").out)
    assert data["accuracy"].keys() == Accuracy.__dataclass_fields__.keys()
    # A quarter of the evaluation data went into choosing the form.
    assert data["accuracy"]["n"] == 523
    assert "174 of 697 samples were left out" in outcome.out


def test_verify_fails_when_the_limit_is_missed(bundle, greencc):
    with np.load("eval.npz") as archive:
        np.savez("few.npz", pixels=archive["pixels"][:40], labels=archive["labels"][:40])
    arguments = ("verify", bundle, "--model", "model.onnx", "--eval", "few.npz")
    assert greencc(*arguments).code == ExitCode.OK
    outcome = greencc(*arguments, "--require-certified", "--json")
    assert outcome.code == ExitCode.LIMIT
    assert json.loads(outcome.out)["accuracy"]["certified"] is False
    assert outcome.err.startswith("greencc: the accuracy could not be certified")


def test_run_writes_the_outputs(bundle, greencc):
    with np.load("eval.npz") as archive:
        x, y = archive["pixels"][:101], archive["labels"][:101]
    np.savez("x.npz", pixels=x)
    results = []
    for batch in ("1", "32"):
        outcome = greencc("run", bundle, "-i", "x.npz", "-o", "y.npz", "--batch", batch)
        assert outcome.code == ExitCode.OK, outcome.err
        assert outcome.out == "101 samples -> y.npz\n"
        with np.load("y.npz") as archive:
            assert archive.files == ["logits"]
            results.append(archive["logits"])
    assert results[0].shape == (101, 10)
    assert results[0].dtype == np.float32
    assert np.mean(results[0].argmax(1) == y) > 0.9
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_report_in_all_formats(bundle, greencc):
    assert greencc("report", bundle, "--format", "json").out == (bundle / "report.json").read_text()
    assert greencc("report", bundle, "--format", "md").out == (bundle / "report.md").read_text()
    assert greencc("report", bundle, "--format", "html").out == (bundle / "report.html").read_text()
    text = greencc("report", bundle).out
    assert "Baseline" in text
    assert api.load(bundle).report.verdict.split(". ")[0] in flat(text)
    for form in ("json", "md", "html"):
        outcome = greencc("report", bundle, "--format", form, "-o", f"new/r.{form}")
        assert (outcome.code, outcome.out, outcome.err) == (ExitCode.OK, "", "")
        assert Path(f"new/r.{form}").read_text() == (bundle / f"report.{form}").read_text()


def test_a_compile_tells_carbon_energy_by_layer_and_its_own_energy(digits, greencc, brief):
    carbon = ("--country", "fr", "--embodied", "120", "--lifetime", "4")
    outcome = greencc(*INT8, *carbon, "-o", "x.greencc")
    assert outcome.code == ExitCode.OK, outcome.err
    report = api.load("x.greencc").report
    for word in (
        "attributed by model",
        "Carbon (SCI)",
        "France (FR)",
        "2023",
        "This compile took",
        "Break-even",
    ):
        assert word in flat(outcome.out)
    assert report.carbon.grid.grams_per_kwh == 56.0
    assert report.carbon.embodied.kg == 120.0
    assert report.compile.energy_j.grade in "ABD"
    assert report.compile.energy_j.low < report.compile.energy_j.value < report.compile.energy_j.high
    found = report.layer_energy
    for side, energy in (("baseline", report.baseline.energy_mj), ("artifact", report.artifact.energy_mj)):
        total = sum(part.mj.value for row in found.rows if (part := getattr(row, side)) is not None)
        assert total == pytest.approx(energy.value, rel=1e-4)  # report.json has six digits


def test_report_with_another_grid(bundle, greencc):
    before = (bundle / "report.json").read_bytes()
    outcome = greencc("report", bundle, "--format", "json", "--grid-intensity", "100g")
    carbon = parse_report(outcome.out).carbon
    assert (carbon.grid.grams_per_kwh, carbon.grid.place) == (100.0, "as given")
    default = api.load(bundle).report.carbon
    assert default.grid.place == "world average"
    assert default.baseline_ug.value == pytest.approx(4.8 * carbon.baseline_ug.value, rel=1e-4)
    assert "Germany (DE)" in flat(greencc("report", bundle, "--country", "DE").out)
    assert (bundle / "report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--country", "UK"), "did you mean 'GB'"),
        (("--grid-intensity", "-3"), "-3 g/kWh"),
        (("--grid-intensity", "nan"), "nan g/kWh"),
        (("--grid-intensity", "56", "--country", "FR"), "exclude each other"),
        (("--embodied", "120"), "--lifetime"),
    ],
)
@pytest.mark.parametrize("command", ["compile", "report"])
def test_carbon_options_that_are_wrong(digits, greencc, command, arguments, words):
    """They are found out before the model or the bundle is looked for."""
    outcome = greencc(command, "none", *arguments)
    assert outcome.code == ExitCode.USAGE
    assert words in flat(outcome.err)
    assert "Traceback" not in outcome.err


def test_measure_prints_json(bundle, greencc, brief):
    arguments = ("measure", bundle, "-b", "model.onnx", "-i", "eval.npz", "--protocol", "quick")
    outcome = greencc(*arguments, "--json")
    assert outcome.code == ExitCode.OK, outcome.err
    data = json.loads(outcome.out)
    assert data.keys() == {
        "schema", "baseline", "artifact", "ratio", "carbon", "conditions", "campaign", "warnings",
    }  # fmt: skip
    for side in ("baseline", "artifact"):
        assert data[side]["latency_ms"]["median"] > 0
        assert data[side]["energy_mj"]["grade"] == "D"
    assert data["baseline"]["size_bytes"] == Path("model.onnx").stat().st_size
    assert data["ratio"]["latency"]["low"] <= data["ratio"]["latency"]["high"]
    assert not any("synthetic" in warning for warning in data["warnings"])


def test_measure_prints_a_table(bundle, greencc, brief):
    outcome = greencc("measure", "model.onnx", "--protocol", "quick")
    assert outcome.code == ExitCode.OK, outcome.err
    assert "Latency, median" in outcome.out
    assert "compared with itself" in flat(outcome.err)
    assert "synthetic" in flat(outcome.err)


def test_inspect_a_model_and_a_bundle(bundle, greencc):
    outcome = greencc("inspect", "model.onnx")
    assert outcome.code == ExitCode.OK, outcome.err
    for text in ("pixels: float32", "3,610", "hidden", "Gemm"):
        assert text in outcome.out
    data = json.loads(greencc("inspect", "model.onnx", "--json").out)
    assert data["params"] == 3610
    assert data["macs"] == 64 * 48 + 48 * 10
    assert len(data["digest"]) == 64
    data = json.loads(greencc("inspect", bundle, "--json", "--profile").out)
    assert data["ops"]["QuantizeLinear"] >= 1
    assert data["microseconds"]
    assert all(value > 0 for value in data["microseconds"].values())


def test_targets(greencc):
    outcome = greencc("targets")
    assert outcome.code == ExitCode.OK
    assert "INT8:" in outcome.out
    rows = json.loads(greencc("targets", "--json").out)
    assert [row["name"] for row in rows] == [kind.name for kind in TARGETS]
    assert rows[0]["missing"] is None
    assert rows[0]["int8"]


def test_passes(greencc):
    outcome = greencc("passes")
    assert outcome.code == ExitCode.OK
    listed = [line.split()[0] for line in outcome.out.splitlines()[1:] if re.match(r"[a-z]", line)]
    assert set(listed) >= {kind.name for kind in PASSES}
    assert {"quantize-int8", "convert-float16"} <= set(listed)
    for kind in PASSES:
        outcome = greencc("passes", kind.name)
        assert outcome.code == ExitCode.OK, outcome.err
        assert outcome.out.startswith(kind.name)
    outcome = greencc("passes", "quantize-int8")
    assert re.search(r"^method +minmax \|", outcome.out, re.MULTILINE)
    assert "percentile" in outcome.out


def test_doctor(greencc):
    outcome = greencc("doctor")
    assert outcome.code == ExitCode.OK, outcome.err
    for text in ("Targets", "cpu", "Energy meters", "Measuring conditions"):
        assert text in outcome.out
    rows = json.loads(greencc("doctor", "--json").out)
    assert {row["status"] for row in rows} <= {"ok", "missing", "note"}
    assert any(row["name"] == "cpu" and row["status"] == "ok" for row in rows)
    meters = {row["name"]: row for row in rows if row["group"] == "Energy meters"}
    assert {"jetson", "hwmon", "model"} <= set(meters)
    for row in meters.values():
        assert re.search(r"grade [A-D]\b", row["detail"])


def test_what_the_doctor_says_to_do_can_be_copied(greencc, monkeypatch):
    rule = 'SUBSYSTEM=="powercap", ACTION=="add", RUN+="/bin/chmod a+r /sys%p/energy_uj"'
    reason = f"the counters are readable by root alone; put this line into the rules: {rule}; " * 2
    found = [MeterProbe("rapl", Grade.B, "package-0", False, reason)]
    monkeypatch.setattr(doctor, "probe", lambda: found)
    outcome = greencc("doctor")
    assert reason in outcome.out
    assert "greencc measure --meter SPEC" in " ".join(outcome.out.split())


# The Python API.


def test_python_api(bundle, digits, brief):
    with api.load(bundle) as loaded:
        with np.load("eval.npz") as archive:
            outputs = loaded.run({"pixels": archive["pixels"][:3]})
        assert outputs["logits"].shape == (3, 10)
    accuracy = api.verify_accuracy(bundle, "model.onnx", "eval.npz")
    assert accuracy == api.verify_accuracy(api.load(bundle), Path("model.onnx"), Path("eval.npz"))
    assert accuracy.n == 523
    found, warnings = api.measure_artifact(bundle, baseline="model.onnx", data="eval.npz", protocol="quick")
    assert found.artifact.latency_ms.median > 0
    assert any("quick" in warning for warning in warnings)
    with pytest.raises(InputError, match="does not exist"):
        api.compile("model.onnx", calibration="none.npz")
    with pytest.raises(api.UsageError, match="precision"):
        api.compile("model.onnx", precision="int9")
    with pytest.raises(api.UsageError, match="protocol"):
        api.measure_artifact("model.onnx", protocol="quickly")


def test_api_names():
    for name in api.__all__:
        assert getattr(api, name) is not None
    assert set(api.__all__) == set(dir(api))
    with pytest.raises(AttributeError, match="has no attribute 'compyle'"):
        api.compyle  # noqa: B018


def test_options_are_plain_data():
    options = api.CompileOptions(calibration="x.npz", precision=Precision.INT8)
    assert replace(options, max_drop=0.02).max_drop == 0.02
    with pytest.raises(api.UsageError, match="max_drop is 0"):
        replace(options, max_drop=0.0)


def test_width_of_the_terminal_is_respected(bundle):
    env = {**os.environ, "COLUMNS": "60"}
    done = process("-m", "greencc", "report", str(bundle), env=env)
    assert done.returncode == ExitCode.OK
    assert max(map(len, done.stdout.splitlines())) <= 60


def test_models_without_node_names(digits, brief):
    """Exporters may leave every name empty; times by layer still find their layer."""
    model = onnx.load("model.onnx")
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, "unnamed.onnx")
    with api.compile(
        "unnamed.onnx", calibration="calibration.npz", evaluation="eval.npz", precision="int8", max_drop=0.1
    ) as bundle:
        layers = [layer.name for layer in bundle.report.layers]
    assert "Gemm_h" in layers
    assert "" not in layers

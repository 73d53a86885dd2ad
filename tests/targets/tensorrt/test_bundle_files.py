"""The scripts that go to a device, run against doubles of what is there."""

from __future__ import annotations

import ast
import atexit
import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.core.engine import Shipment
from greencc.core.model import load_model
from greencc.targets import make_target
from greencc.targets._tensorrt import rtx
from greencc.targets._tensorrt import shipped as scripts
from greencc.targets._tensorrt.files import write_readme
from greencc.targets._tensorrt.target import EmittedTarget

from .small import shipped

DOUBLES = Path(__file__).parents[2] / "devices"
TRTEXEC = """#!{python}
import json, os, struct, sys
sys.path.insert(0, {doubles!r})
import trtexec_options
rtx = os.path.basename(sys.argv[0]) == "tensorrt_rtx"
version = os.environ.get("DOUBLE_VERSION", "100300")
if version and not rtx:
    print("&&&& RUNNING TensorRT.trtexec [TensorRT v%s] # %s" % (version, " ".join(sys.argv)))
number = int(version or "100300")
base = 100 if number >= 100000 else 10
known = dict(trtexec_options.RTX) if rtx else trtexec_options.trtexec((number // base // 100, number // 100 % base))
known.update((name, "=" in name) for name in os.environ.get("DOUBLE_MORE", "").split())
known = {{name.strip("="): valued for name, valued in known.items()}}
try:
    options = trtexec_options.parse(known, sys.argv[1:])
except trtexec_options.Refused as refused:
    print("\\n".join("[E] " + line for line in refused.lines))
    sys.exit(1)
if "help" in options:
    print("\\n".join("  --%s  text" % name for name in known))
    sys.exit(0)
trouble = os.environ.get("DOUBLE_TROUBLE", "")
if trouble == "memory":
    print("[E] Error[2]: [virtualMemoryBuffer.cpp::resizePhysical::145] OutOfMemory (no further information)")
    sys.exit(1)
if trouble == "error":
    print("[E] [TRT] ModelImporter.cpp:726: While parsing node number 3 [Conv]: no")
    sys.exit(1)
if "saveEngine" in options:
    assert os.path.isfile(options["onnx"])
    with open(options["saveEngine"], "w") as stream:
        json.dump(sys.argv[1:], stream)
    if "timingCacheFile" in options:
        open(options["timingCacheFile"], "w").write("kept")
    sys.exit(7 if trouble == "late" else 0)
listing = json.load(open("samples/samples.json"))
name, _, given = options["loadInputs"].rpartition(":")
assert dict(trtexec_options.pairs(options.get("shapes", name + ":1"))).keys() == {{name}}
outputs = []
for sample in listing["samples"]:
    same = os.path.basename(given) == sample["inputs"][0]["file"] and name == sample["inputs"][0]["name"]
    for value in sample["outputs"] if same else []:
        data = open("samples/" + value["file"], "rb").read()
        code = {{"float32": "f", "int64": "q", "uint8": "B", "bool": "B"}}[value["dtype"]]
        numbers = struct.unpack("<%d%s" % (len(data) // struct.calcsize("<" + code), code), data)
        off = float(os.environ.get("DOUBLE_OFF", "0")) * max(map(abs, numbers))
        numbers = [n + off if code == "f" else n for n in numbers]
        # Which of them, and by how much.
        for where, change in json.loads(os.environ.get("DOUBLE_CHANGE", "[]")):
            numbers[where] += change
        texts = ", ".join(os.environ.get("DOUBLE_TEXT", "") or repr(n) for n in numbers)
        outputs.append('{{"name": "%s", "dimensions": "1x4", "values": [%s]}}' % (value["name"], texts))
open(options["exportOutput"], "w").write("[%s]" % ", ".join(outputs))
"""
NVPMODEL = """#!/bin/sh
[ "$1" = -q ] || exit 9
echo "NV Power Mode: $DOUBLE_MODE"
echo 3
"""


@functools.cache
def artifact(spec: str, name: str) -> Path:
    """The complete artifact for a target, made once; nobody changes it."""
    target = make_target(spec)
    assert isinstance(target, EmittedTarget)
    folder = Path(tempfile.mkdtemp(prefix="greencc-artifact-"))
    atexit.register(shutil.rmtree, folder)
    return shipped(target, folder, name=name).parent


class Device:
    """A folder of an artifact, and a PATH that has nothing but the doubles."""

    def __init__(self, spec: str, folder: Path, name: str = "image") -> None:
        self.folder = Path(shutil.copytree(artifact(spec, name), folder / "artifact"))
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in ("dirname", "sed", "head", "rm", "mv", "tr", "cat", "grep", "tail", "tee"):
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)
        tool = "tensorrt_rtx" if spec.startswith("tensorrt-rtx") else "trtexec"
        self.add(tool, TRTEXEC.format(python=sys.executable, doubles=str(DOUBLES)))
        self.add("nvpmodel", NVPMODEL)

    def add(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run something from another folder."""
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={"PATH": str(self.bin), "DOUBLE_MODE": "25W", **environment},
        )

    def build(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("/bin/sh", str(self.folder / "build.sh"), *options, **environment)

    def check(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, str(self.folder / "check.py"), *options, **environment)

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device("jetson", tmp_path)


WRITTEN = {"README.txt", "build.py", "build.sh", "check.py", "device.json", "model.onnx", "samples"}


def test_the_folder_holds_what_the_device_needs(device: Device) -> None:
    assert device.files() == WRITTEN
    settings = json.loads((device.folder / "device.json").read_text())
    assert settings["tensorrt"] == "10.3"
    assert settings["power_mode"] == "25W"
    assert settings["device"]["jetpack"] == "6.2"
    assert settings["shapes"] == {"image": {"min": [1, 3, 8, 8], "opt": [1, 3, 8, 8], "max": [8, 3, 8, 8]}}
    assert "Jetson Orin Nano" in (device.folder / "README.txt").read_text()
    assert "@" not in (device.folder / "README.txt").read_text().replace("user@device", "")
    listing = json.loads((device.folder / "samples" / "samples.json").read_text())
    raw = (device.folder / "samples" / listing["samples"][0]["inputs"][0]["file"]).read_bytes()
    first = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype("<f4")
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(1, 3, 8, 8), first)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    target = make_target("jetson")
    assert isinstance(target, EmittedTarget)
    folders = [shipped(target, tmp_path / name).parent for name in "ab"]
    files = [
        {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        for folder in folders
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["build.py", "check.py"])
def test_scripts_are_python_3_6_and_import_only_its_library(name: str) -> None:
    text = (Path(next(iter(scripts.__path__))) / name).read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 6))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= {
        "argparse", "array", "importlib", "json", "math", "os", "pathlib", "re", "shutil", "subprocess", "sys",
        "tempfile", "typing",
    }  # fmt: skip
    assert "text=True" not in text
    assert "capture_output" not in text


def test_build_writes_the_engine_whole_and_says_what_is_next(device: Device) -> None:
    done = device.build()
    assert (done.returncode, done.stderr) == (0, "")
    assert "check.py" in done.stdout
    assert device.files() == WRITTEN | {"engine.plan", "timing.cache", "build.log"}
    told = json.loads((device.folder / "engine.plan").read_text())
    assert told[0] == "--onnx=model.onnx"
    assert "--timingCacheFile=timing.cache" in told
    assert "--memPoolSize=workspace:2048" in told
    assert "--skipInference" in told
    assert "--maxShapes=image:8x3x8x8" in told


def test_the_workspace_is_the_users_choice(device: Device) -> None:
    assert device.build("--workspace", "300").returncode == 0
    assert "--memPoolSize=workspace:300" in json.loads((device.folder / "engine.plan").read_text())
    for wrong in ("much", "0", "08", ""):
        done = device.build("--workspace", wrong)
        assert done.returncode == 1
        assert "give a number of MiB" in done.stderr


def test_there_is_no_workspace_below_one_mib(device: Device) -> None:
    assert "--workspace 1\n" in device.build("--workspace", "2", DOUBLE_TROUBLE="memory").stderr
    done = device.build("--workspace", "1", DOUBLE_TROUBLE="memory")
    assert done.stderr.endswith("close other programs, add swap\n")


@pytest.mark.parametrize(
    ("spec", "version"),
    [
        ("jetson:jetpack=6.2", "100300"),
        ("jetson-nano", "8201"),
        ("jetson:jetpack=5.1", "8502"),
        ("jetson-thor", ""),
    ],
)
def test_no_option_is_given_twice_or_is_unknown(spec: str, version: str, tmp_path: Path) -> None:
    """The double refuses both, as trtexec does."""
    device = Device(spec, tmp_path)
    release = json.loads((device.folder / "device.json").read_text())["tensorrt"].split(".")
    done = device.build(DOUBLE_VERSION=version or f"{int(release[0]):02}{int(release[1]):02}00")
    assert done.returncode == 0, done.stderr
    names = [each.partition("=")[0] for each in told(device)]
    assert len(names) == len(set(names))
    # TF32 came with Ampere.
    assert ("--noTF32" in names) is (spec != "jetson-nano")
    assert device.build(DOUBLE_VERSION=version or "101300", DOUBLE_TROUBLE="error").returncode == 1


def test_a_builder_without_an_option_is_warned_of(tmp_path: Path) -> None:
    device = Device("tensorrt-rtx", tmp_path)
    done = device.build("--any-mode")
    assert done.returncode == 0
    assert "has no option --noTF32: float32 may be computed in TF32" in done.stderr
    known = device.build("--any-mode", DOUBLE_MORE="noTF32 memPoolSize=")
    assert (known.returncode, known.stderr) == (0, "")
    assert "--noTF32" in told(device)
    assert "--memPoolSize=workspace:4096" in told(device)


def test_tensorrt_rtx_is_told_its_own_options(tmp_path: Path) -> None:
    device = Device("tensorrt-rtx", tmp_path)
    assert device.build("--any-mode").returncode == 0
    assert told(device)[0] == "--onnx=model.onnx"
    assert {each.partition("=")[0] for each in told(device)[1:]} == {
        "--saveEngine", "--minShapes", "--optShapes", "--maxShapes", "--skipInference",
    }  # fmt: skip
    assert "has no --loadInputs and no --exportOutput" in device.check().stderr
    assert device.check(DOUBLE_MORE="loadInputs= exportOutput=").returncode == 0
    (device.bin / "tensorrt_rtx").unlink()
    for done in (device.build(), device.check()):
        assert "comes with the SDK of TensorRT for RTX" in done.stderr
        assert "Jetson" not in done.stderr


def test_the_instructions_fit_what_is_in_the_folder(tmp_path: Path) -> None:
    device = Device("tensorrt-rtx", tmp_path)
    text = (device.folder / "README.txt").read_text()
    assert ("Build the engine there" in text) is not (device.folder / "engine.plan").is_file()
    target = make_target("tensorrt-rtx")
    assert isinstance(target, EmittedTarget)
    settings = target.settings(load_model(device.folder / "model.onnx"))
    write_readme(device.folder, settings, Shipment("small net", [], [], None), built_by="1.7.1")
    built = (device.folder / "README.txt").read_text()
    assert "Build the engine there" not in built
    assert "by TensorRT for RTX 1.7.1" in built
    assert "@" not in built.replace("user@device", "")


def test_older_trtexec_is_told_in_its_own_words(tmp_path: Path) -> None:
    device = Device("jetson-nano", tmp_path)
    assert device.build(DOUBLE_VERSION="8201").returncode == 0
    told = json.loads((device.folder / "engine.plan").read_text())
    assert "--workspace=1024" in told
    assert "--buildOnly" in told


@pytest.mark.parametrize(
    ("version", "found", "hint"),
    [
        ("8502", "TensorRT 8.5", "jetson:preset=jetson-orin-nano,jetpack=5.1"),
        ("100900", "TensorRT 10.9", "jetpack=RELEASE (that of TensorRT 10.9)"),
    ],
)
def test_another_tensorrt_is_refused_with_the_remedy(
    device: Device, version: str, found: str, hint: str
) -> None:
    done = device.build(DOUBLE_VERSION=version)
    assert done.returncode == 1
    assert found in done.stderr
    assert "made for 10.3" in done.stderr
    assert hint in done.stderr
    assert device.files() == WRITTEN
    assert device.build("--any-version", DOUBLE_VERSION=version).returncode == 0


def test_a_builder_that_does_not_say_its_version_is_warned_of(device: Device) -> None:
    done = device.build(DOUBLE_VERSION="")
    assert done.returncode == 0
    assert "does not say which TensorRT it is" in done.stderr


def test_no_builder(device: Device) -> None:
    (device.bin / "trtexec").unlink()
    done = device.build()
    assert done.returncode == 1
    assert "libnvinfer-bin" in done.stderr
    assert "is no program" in device.build("--trtexec", "/nowhere/trtexec").stderr


@pytest.mark.parametrize(
    ("trouble", "message"),
    [("memory", "--workspace 1024"), ("error", "While parsing node number 3"), ("late", "exit status 7")],
)
def test_a_failed_build_leaves_no_engine_and_says_why(device: Device, trouble: str, message: str) -> None:
    done = device.build(DOUBLE_TROUBLE=trouble)
    assert done.returncode == 1
    assert message in done.stderr
    assert device.files() - {"timing.cache"} == WRITTEN | {"build.log"}
    shown = device.build("--verbose", DOUBLE_TROUBLE=trouble)
    assert shown.returncode == 1
    assert "RUNNING TensorRT.trtexec" in shown.stdout


def test_an_old_engine_survives_a_failed_build(device: Device) -> None:
    assert device.build().returncode == 0
    before = (device.folder / "engine.plan").read_bytes()
    assert device.build(DOUBLE_TROUBLE="late").returncode == 1
    assert (device.folder / "engine.plan").read_bytes() == before


@pytest.mark.parametrize(
    ("mode", "warned"), [("25W", False), ("MODE_25W", False), ("15W", True), ("MAXN_SUPER", True), ("", True)]
)
def test_another_power_mode_is_warned_of_and_left_alone(device: Device, mode: str, warned: bool) -> None:
    done = device.build(DOUBLE_MODE=mode)
    assert done.returncode == 0
    assert ("warning" in done.stderr) is warned
    if warned and mode:
        assert f"the power mode is {mode}, and figures are for 25W" in done.stderr
    assert device.build("--any-mode", DOUBLE_MODE=mode).stderr == ""


def test_help_and_unknown_options(device: Device) -> None:
    done = device.build("--help")
    assert done.returncode == 0
    assert "TensorRT 10.3" in done.stdout
    assert "see sh build.sh --help" in device.build("--fast").stderr
    assert device.files() == WRITTEN


def test_a_dla_that_is_not_seen_is_warned_of(tmp_path: Path) -> None:
    device = Device("jetson-agx-orin:jetpack=7.2.2,dla=true", tmp_path)
    done = device.build(DOUBLE_VERSION="110401", DOUBLE_MODE="MAXN")
    assert done.returncode == 0
    assert "no device file of a DLA" in done.stderr
    told = json.loads((device.folder / "engine.plan").read_text())
    assert "--useDLACore=0" in told
    assert "--allowGPUFallback" in told


def test_an_engine_that_computes_the_same_passes(device: Device) -> None:
    assert device.build().returncode == 0
    done = device.check()
    assert (done.returncode, done.stderr) == (0, "")
    assert "all outputs are within the tolerance" in done.stdout


def test_an_engine_that_computes_something_else_is_refused(device: Device) -> None:
    assert device.build().returncode == 0
    assert device.check(DOUBLE_OFF="0.001").returncode == 0
    done = device.check(DOUBLE_OFF="0.2")
    assert done.returncode == 1
    assert "TOO MUCH" in done.stdout
    assert "do not use it" in done.stderr


def relabel(device: Device, dtype: str, values: list[int]) -> None:
    """Make whole numbers of the samples' outputs."""
    path = device.folder / "samples" / "samples.json"
    listing = json.loads(path.read_text())
    for sample in listing["samples"]:
        for value in sample["outputs"]:
            value |= {"dtype": dtype, "shape": [len(values)]}
            (path.parent / value["file"]).write_bytes(np.array(values, np.dtype(dtype)).tobytes())
    path.write_text(json.dumps(listing | {"tolerance": 0.1}))


@pytest.mark.parametrize(
    ("dtype", "values", "change", "good"),
    [
        # The next class is another class, however large its number.
        ("int64", [950], [], True),
        ("int64", [950], [[0, 50]], False),
        ("int64", list(range(100)), [[3, 1]], True),
        ("int64", list(range(100)), [[each, 1] for each in range(11)], False),
        ("bool", [1, 0, 1], [[1, 1]], False),
        # Pixels may be rounded the other way.
        ("uint8", [200] * 10, [[each, 1] for each in range(10)], True),
        ("uint8", [200] * 10, [[each, 2] for each in range(10)], False),
    ],
)
def test_whole_numbers_are_decisions(
    device: Device, dtype: str, values: list[int], change: list[list[int]], good: bool
) -> None:
    assert device.build().returncode == 0
    relabel(device, dtype, values)
    done = device.check(DOUBLE_CHANGE=json.dumps(change))
    assert (done.returncode == 0) is good, done.stdout
    assert f"of {2 * len(values)} whole numbers differ" in done.stdout


@pytest.mark.parametrize(("text", "named"), [("nan", "NaN"), ("-nan", "NaN"), ("inf", "infinity")])
def test_an_engine_that_gives_no_numbers_is_told_so(device: Device, text: str, named: str) -> None:
    assert device.build().returncode == 0
    done = device.check(DOUBLE_TEXT=text)
    assert done.returncode == 1
    assert f"scores: the engine gave {named}, 4 of 4 values are no numbers" in done.stdout
    assert "do not use it" in done.stderr


@pytest.mark.parametrize("name", ["scope/image:0", "an image"])
def test_inputs_of_any_name_are_told(name: str, tmp_path: Path) -> None:
    device = Device("jetson", tmp_path, name)
    assert device.build().returncode == 0
    assert f"--maxShapes={name}:8x3x8x8" in told(device)
    done = device.check()
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["a,b", "it's"])
def test_inputs_that_trtexec_cannot_read_are_refused(name: str, tmp_path: Path) -> None:
    device = Device("jetson", tmp_path, name)
    done = device.build()
    assert done.returncode == 1
    assert f"trtexec cannot read the name of the input {name!r}" in done.stderr
    assert "python3 build.py" in done.stderr
    assert device.files() == WRITTEN
    assert build_py(device, "10.3.0").returncode == 0
    assert "give the input a name without commas" in device.check().stderr


def test_check_says_what_is_missing(device: Device) -> None:
    assert "build it first: sh build.sh" in device.check().stderr
    assert device.build().returncode == 0
    (device.bin / "trtexec").unlink()
    assert "libnvinfer-bin" in device.check().stderr
    (device.folder / "samples" / "samples.json").unlink()
    assert "cannot read samples.json" in device.check().stderr


FAKE_TENSORRT = '''
"""A double of TensorRT's Python module: what is asked of it goes to a file."""
import enum, json, os
__version__ = os.environ["DOUBLE_VERSION"]
NEW = int(__version__.split(".")[0]) >= 10
float32, float16 = "float32", "float16"
TOLD = {"flags": ["TF32"], "layers": {}, "plugins": False}
def init_libnvinfer_plugins(logger, namespace):
    TOLD["plugins"] = True
class Logger:
    WARNING, VERBOSE = 1, 2
    def __init__(self, level): TOLD["level"] = level
class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    if NEW: STRONGLY_TYPED = 1
class BuilderFlag(enum.Enum):
    FP16 = 0
    INT8 = 1
    OBEY_PRECISION_CONSTRAINTS = 2
    GPU_FALLBACK = 3
    TF32 = 4
class MemoryPoolType(enum.Enum):
    WORKSPACE = 0
class DeviceType(enum.Enum):
    DLA = 1
class Tensor:
    dtype = float32
class Layer:
    num_outputs = 1
    def __init__(self, name): self.name = name
    def __setattr__(self, key, value):
        object.__setattr__(self, key, value)
        if key == "precision": TOLD["layers"][self.name] = value
    def get_output(self, index): return Tensor()
    def set_output_type(self, index, kind): pass
class Network:
    layers = [Layer("stem"), Layer("head")]
    num_layers = 2
    def get_layer(self, index): return self.layers[index]
class Profile:
    def set_shape(self, name, *sizes): TOLD["shapes"] = {name: sizes}
class Cache:
    def __init__(self, content=b""): self.content = content
    def serialize(self): return b"cache"
class Config:
    if __version__ >= "8.4" or NEW:
        def set_memory_pool_limit(self, pool, size): TOLD["workspace"] = size
    def set_flag(self, flag): TOLD["flags"].append(flag.name)
    def clear_flag(self, flag): TOLD["flags"].remove(flag.name)
    def add_optimization_profile(self, profile): pass
    def create_timing_cache(self, content): return None if content == b"damaged" else Cache(content)
    def set_timing_cache(self, cache, mismatch):
        if cache.content == b"foreign": return False
        TOLD["cache"] = cache.content.decode()
        return True
    def get_timing_cache(self): return Cache()
    def __setattr__(self, key, value):
        if key == "max_workspace_size": TOLD["workspace"] = value
        TOLD[key] = str(value)
class Builder:
    num_DLA_cores = 0
    def __init__(self, logger):
        if os.environ.get("DOUBLE_TROUBLE") == "driver":
            raise TypeError("pybind11::init(): factory function returned nullptr")
    def __bool__(self): return os.environ.get("DOUBLE_TROUBLE") != "gpu"
    def create_network(self, flags):
        TOLD["network"] = flags
        return Network()
    def create_builder_config(self): return Config()
    def create_optimization_profile(self): return Profile()
    def build_serialized_network(self, network, config):
        return None if os.environ.get("DOUBLE_TROUBLE") == "memory" else json.dumps(TOLD).encode()
class OnnxParser:
    num_errors = 1
    def __init__(self, network, logger): pass
    def parse_from_file(self, path): return os.environ.get("DOUBLE_TROUBLE") != "parser"
    def get_error(self, index): return "In node stem: unsupported"
'''


def build_py(
    device: Device,
    version: str,
    *options: str,
    module: str = "tensorrt",
    text: str = FAKE_TENSORRT,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    modules = device.bin.parent / "modules"
    modules.mkdir(exist_ok=True)
    (modules / f"{module}.py").write_text(text)
    command = (sys.executable, "-B", str(device.folder / "build.py"), *options)
    return device.run(*command, PYTHONPATH=str(modules), DOUBLE_VERSION=version, **environment)


def told(device: Device) -> Any:
    """What the double's engine says of how it was asked for."""
    return json.loads((device.folder / "engine.plan").read_text())


def test_build_py_says_the_same_as_build_sh(device: Device) -> None:
    done = build_py(device, "10.3.0")
    assert (done.returncode, done.stderr) == (0, "")
    found = told(device)
    assert found["workspace"] == 2048 << 20
    assert found["shapes"] == {"image": [[1, 3, 8, 8], [1, 3, 8, 8], [8, 3, 8, 8]]}
    assert found["cache"] == ""
    assert device.files() == WRITTEN | {"engine.plan", "timing.cache"}
    assert build_py(device, "10.3.0", "--workspace", "64").returncode == 0
    assert (told(device)["workspace"], told(device)["cache"]) == (64 << 20, "cache")
    assert told(device)["plugins"]
    assert told(device)["flags"] == []


@pytest.mark.parametrize("content", ["foreign", "damaged"])
def test_build_py_leaves_a_timing_cache_that_does_not_fit(device: Device, content: str) -> None:
    (device.folder / "timing.cache").write_text(content)
    done = build_py(device, "10.3.0")
    assert (done.returncode, done.stderr) == (0, "")
    assert told(device)["cache"] == ""
    assert (device.folder / "timing.cache").read_text() == "cache"


def test_build_py_on_the_oldest_tensorrt(tmp_path: Path) -> None:
    device = Device("jetson-nano", tmp_path)
    done = build_py(device, "8.2.1")
    assert (done.returncode, done.stderr) == (0, "")
    assert told(device)["network"] == 1  # an explicit batch
    assert told(device)["workspace"] == 1024 << 20


def test_build_py_with_strong_typing(tmp_path: Path) -> None:
    device = Device("jetson-thor", tmp_path)
    done = build_py(device, "10.13.3")
    assert (done.returncode, done.stderr) == (0, "")
    assert told(device)["network"] == 2
    assert told(device)["flags"] == []


RTX = (
    FAKE_TENSORRT
    + """
class ILogger:
    INTERNAL_ERROR, ERROR = 0, 1
    def __init__(self): pass
class ComputeCapability(enum.Enum):
    SM89 = 89
Config.set_compute_capability = lambda self, which, index: TOLD.update(sm=which.name)
"""
)


def test_build_py_with_tensorrt_for_rtx(tmp_path: Path) -> None:
    device = Device("tensorrt-rtx", tmp_path)
    done = build_py(device, "1.7.1", module="tensorrt_rtx", text=RTX)
    assert (done.returncode, done.stderr) == (0, "")
    assert told(device)["flags"] == []
    assert "timing.cache" not in device.files()


def test_an_engine_ahead_of_time_computes_float32_in_full(tmp_path: Path) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text(RTX + "OnnxParser.num_errors = 0\n")
    shapes = {"image": {"min": [1], "opt": [1], "max": [2]}}
    request = {"model": "m.onnx", "bytes": 1 << 30, "engine": str(tmp_path / "e"), "sm": 89, "shapes": shapes}
    done = subprocess.run(
        [sys.executable, "-P", rtx._CHILD, json.dumps(request)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path), "DOUBLE_VERSION": "10.3.0"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    asked = json.loads((tmp_path / "e").read_text())
    assert asked["flags"] == []
    assert asked["sm"] == "SM89"


def test_build_py_keeps_layers_in_float32(device: Device) -> None:
    path = device.folder / "device.json"
    settings = json.loads(path.read_text())
    settings |= {"builder_flags": ["FP16", "OBEY_PRECISION_CONSTRAINTS"], "float32_nodes": ["head"]}
    path.write_text(json.dumps(settings))
    assert build_py(device, "10.3.0").returncode == 0
    assert told(device)["layers"] == {"head": "float32"}
    assert told(device)["flags"] == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]


@pytest.mark.parametrize(
    ("version", "trouble", "message"),
    [
        ("8.5.2", "", "this device has TensorRT 8.5, and the graph was made for 10.3"),
        ("10.3.0", "gpu", "found no GPU"),
        ("10.3.0", "driver", "does not start here: pybind11::init()"),
        ("10.3.0", "parser", "In node stem: unsupported"),
        ("10.3.0", "memory", "--workspace 1024"),
    ],
)
def test_build_py_says_each_problem_in_a_line(
    device: Device, version: str, trouble: str, message: str
) -> None:
    done = build_py(device, version, DOUBLE_TROUBLE=trouble)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert device.files() == WRITTEN


def test_build_py_without_tensorrt_or_files(device: Device) -> None:
    done = device.run(sys.executable, "-I", str(device.folder / "build.py"))
    assert done.returncode == 1
    assert "python3-libnvinfer" in done.stderr
    (device.folder / "device.json").unlink()
    assert "cannot read device.json" in build_py(device, "10.3.0").stderr

"""Interruptions, full disks, missing packages: what goes wrong around a compile leaves nothing behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from greencc.compiler.session import Session
from greencc.core.errors import ExitCode

COMPILE = ("compile", "model.onnx", "-c", "calibration.npz", "--eval", "eval.npz", "--effort", "quick")
INT8 = (*COMPILE, "--precision", "int8", "-o", "out.greencc")
PHASES = (
    "loading", "building fp32", "building int8-minmax", "planning", "comparing forms", "certifying", "measuring",
    "profiling",
)  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_interrupt_in_every_phase(phase, digits, refused, brief, monkeypatch):
    """Ctrl-C a moment after the phase began."""
    seen = []
    genuine = Session.phase

    def watched(self, name):
        seen.append(name)
        if name == phase:
            raise KeyboardInterrupt
        return genuine(self, name)

    monkeypatch.setattr(Session, "phase", watched)
    refused(
        (*COMPILE, "-o", "out.greencc"), ExitCode.INTERRUPTED, "interrupted; nothing was left half-written"
    )
    assert seen[-1] == phase


def test_interrupt_while_calibrating(digits, refused, monkeypatch):
    from greencc.passes.quantize_int8 import QuantizeInt8

    def apply(self, model, ctx):
        raise KeyboardInterrupt

    monkeypatch.setattr(QuantizeInt8, "apply", apply)
    refused(INT8, ExitCode.INTERRUPTED, "interrupted")


def test_interrupt_while_writing(digits, refused, brief, monkeypatch):
    from greencc.bundle import write

    def manifest_hash(path):
        assert path.parent.joinpath("report.html").exists() or path.parent.name == "artifact"
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "sha256_file", manifest_hash)
    refused(INT8, ExitCode.INTERRUPTED, "interrupted; nothing was left half-written")


def test_interrupt_while_replacing_keeps_the_old_bundle(bundle, refused, brief, monkeypatch):
    genuine = Path.rename

    def rename(self, target):
        if self.name.endswith(".part"):
            raise KeyboardInterrupt
        return genuine(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    arguments = (*COMPILE, "--precision", "fp32", "-o", str(bundle), "--force")
    refused(arguments, ExitCode.INTERRUPTED, "interrupted; nothing was left half-written")


def _hear_interrupts():
    # A shell's background jobs ignore them, and so would what they start.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "kill"])
def test_signal_ends_a_compile_cleanly(number, digits):
    before = sorted(digits.iterdir())
    command = [sys.executable, "-m", "greencc", *INT8]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=_hear_interrupts, **pipes) as process:
        try:
            _wait_for(lambda: list(digits.glob(".out.greencc.*.part/artifact/model.onnx")), process)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == ExitCode.INTERRUPTED
    # click ends the line that the terminal shows ^C in.
    assert err == "\ngreencc: interrupted; nothing was left half-written\n"
    assert out == ""
    assert sorted(digits.iterdir()) == before


def _wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Disks.


@pytest.mark.parametrize("name", ["report.html", "report.json", "recipe.toml", "manifest.json"])
def test_disk_full_while_writing_the_bundle(name, digits, refused, brief, monkeypatch):
    # The manifest is written as the bytes whose hash is recorded, the others as text.
    kind = "write_bytes" if name == "manifest.json" else "write_text"
    genuine = getattr(Path, kind)

    def write(self, content, **options):
        if self.name == name:
            genuine(self, content[:10], **options)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return genuine(self, content, **options)

    monkeypatch.setattr(Path, kind, write)
    refused(INT8, ExitCode.BAD_INPUT, "cannot write out.greencc: No space left on device", "free some space")


def test_disk_full_while_building(digits, refused, monkeypatch):
    from greencc.core import model

    def save_model(model, path):
        path.write_bytes(b"half a model")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(model, "save_model", save_model)
    refused(
        INT8, ExitCode.BAD_INPUT, "No space left on device", "free some space or choose another output folder"
    )


def test_disk_full_while_writing_outputs(bundle, refused, monkeypatch):
    def write_array(stream, values, **options):
        stream.write(b"half an array")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np.lib.format, "write_array", write_array)
    arguments = ("run", str(bundle), "-i", "eval.npz", "-o", "y.npz")
    refused(arguments, ExitCode.BAD_INPUT, "cannot write y.npz: No space left on device", "free some space")


@pytest.fixture
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Mount small file systems, where that is permitted."""
    mounted: list[Path] = []

    def make(options: str) -> Path:
        folder = tmp_path_factory.mktemp("mount")
        try:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True
            )
        except OSError as error:
            pytest.skip(f"there is no mount command: {error}")
        if done.returncode:
            pytest.skip(f"mounting is not permitted: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("size", ["16k", "64k"])
def test_small_disk(size, digits, refused, brief, mount):
    """16 kB are full while building, 64 kB while the reports are written."""
    disk = mount(f"size={size}")
    arguments = (*INT8[:-1], str(disk / "out.greencc"))
    refused(
        arguments,
        ExitCode.BAD_INPUT,
        "No space left on device",
        "free some space or choose another output folder",
    )
    assert list(disk.iterdir()) == []


def test_read_only_disk(digits, refused, mount):
    disk = mount("ro,size=64k")
    arguments = (*INT8[:-1], str(disk / "new" / "out.greencc"))
    refused(
        arguments,
        ExitCode.BAD_INPUT,
        "Read-only file system",
        "choose an output folder on a writable file system",
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_write_permission(digits, refused):
    (digits / "locked").mkdir(mode=0o555)
    arguments = (*INT8[:-1], "locked/out.greencc")
    refused(
        arguments,
        ExitCode.BAD_INPUT,
        "cannot write locked/out.greencc: Permission denied",
        "you may write to",
    )


# Packages.


def test_without_onnxruntime(digits, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(
        INT8, ExitCode.UNAVAILABLE, "onnxruntime is not installed: pip install onnxruntime", "greencc doctor"
    )


def test_without_onnxruntime_a_bundle_is_verified_but_not_run(bundle, greencc, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert greencc("verify", bundle).code == ExitCode.OK
    arguments = ("run", str(bundle), "-i", "eval.npz", "-o", "y.npz")
    refused(
        arguments,
        ExitCode.UNAVAILABLE,
        "needs the target 'cpu': onnxruntime is not installed",
        "greencc doctor",
    )


def test_without_onnxruntime_the_doctor_says_so(greencc, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime is not installed" in greencc("targets").out.replace("\n", " ")
    outcome = greencc("doctor", "--json")
    assert outcome.code == ExitCode.OK
    assert "onnxruntime is not installed" in outcome.out


def test_without_pillow(digits, refused, monkeypatch):
    from PIL import Image

    (digits / "images").mkdir()
    Image.new("L", (8, 8)).save(digits / "images" / "0.png")
    (digits / "images" / "preprocess.toml").write_text('[preprocess]\ncolor = "L"\n')
    monkeypatch.setitem(sys.modules, "PIL", None)
    arguments = ("compile", "model.onnx", "-c", "images")
    refused(arguments, ExitCode.UNAVAILABLE, "reading images needs Pillow", "greencc[images]")


def test_internal_errors_say_so_and_show_a_traceback_on_request(digits, greencc, monkeypatch):
    def phase(self, name):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Session, "phase", phase)
    monkeypatch.delenv("GREENCC_DEBUG", raising=False)
    outcome = greencc(*INT8)
    assert outcome.code == ExitCode.INTERNAL
    assert outcome.err.startswith("greencc: internal error: ZeroDivisionError: a bug\n")
    assert "GREENCC_DEBUG=1" in outcome.err
    monkeypatch.setenv("GREENCC_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        greencc(*INT8)


# Limits.


@pytest.fixture
def fragile(digits: Path) -> Path:
    """A digits model that INT8 ruins: one hidden unit, which counts for nothing, is so large that others round to 0."""
    model = onnx.load(digits / "model.onnx")
    weights = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    weights["w0"][:, 0] = 0
    weights["b0"][0] = 1e6
    weights["w1"][0, :] = 0
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    onnx.save(model, digits / "model.onnx")
    return digits


def test_limit_not_reachable(fragile, refused):
    refused([*INT8, "--search-time", "0"], ExitCode.LIMIT, "accuracy drops by", "use --precision auto")


def test_auto_falls_back_to_float_and_says_so(fragile, greencc, brief):
    import greencc as api

    outcome = greencc(*COMPILE, "-o", "out.greencc")
    assert outcome.code == ExitCode.OK, outcome.err
    report = api.load("out.greencc").report
    assert report.precision in ("original", "fp32")
    assert report.accuracy.drop == 0.0
    assert report.budget.met
    reasons = {item.name: item.reason for item in report.candidates}
    assert any("loses" in reason for name, reason in reasons.items() if name.startswith("int8"))
    assert "Original kept" in report.verdict
    assert "Original kept" in outcome.out


def test_constant_calibration_data_warns(digits, greencc, brief):
    with np.load("calibration.npz") as archive:
        np.savez("calibration.npz", pixels=np.full_like(archive["pixels"], 0.5))
    outcome = greencc(*INT8, "--max-drop", "90%")
    assert outcome.code == ExitCode.OK, outcome.err
    assert "all 200 samples of calibration.npz are equal" in " ".join(outcome.out.split()).lower()


def test_constant_calibration_data_is_mentioned_when_the_limit_is_missed(digits, refused):
    with np.load("calibration.npz") as archive:
        np.savez("calibration.npz", pixels=np.full_like(archive["pixels"], 0.5))
    refused(
        [*INT8, "--search-time", "0"],
        ExitCode.LIMIT,
        "accuracy drops by",
        "Warning: all 200 samples of calibration.npz are equal",
    )


def test_one_calibration_sample_warns(digits, greencc, brief):
    with np.load("calibration.npz") as archive:
        np.savez("calibration.npz", pixels=archive["pixels"][:1])
    outcome = greencc(*INT8, "--max-drop", "90%")
    assert outcome.code == ExitCode.OK, outcome.err
    assert "calibration rests on 1 sample:" in " ".join(outcome.out.split()).lower()

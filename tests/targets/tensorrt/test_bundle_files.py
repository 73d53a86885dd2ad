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

import numpy as np
import pytest

from greencc.targets import make_target
from greencc.targets._tensorrt import shipped as scripts
from greencc.targets._tensorrt.target import EmittedTarget

from .small import shipped

TRTEXEC = """#!{python}
import json, os, struct, sys
options = dict(part[2:].partition("=")[::2] for part in sys.argv[1:] if part.startswith("--"))
version = os.environ.get("DOUBLE_VERSION", "100300")
if version:
    print("&&&& RUNNING TensorRT.trtexec [TensorRT v%s] # %s" % (version, " ".join(sys.argv)))
if "help" in options:
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
    open(options["timingCacheFile"], "w").write("kept")
    sys.exit(7 if trouble == "late" else 0)
listing = json.load(open("samples/samples.json"))
name, _, given = options["loadInputs"].partition(":")
outputs = []
for sample in listing["samples"]:
    same = os.path.basename(given) == sample["inputs"][0]["file"] and name == sample["inputs"][0]["name"]
    for value in sample["outputs"] if same else []:
        numbers = struct.unpack("<%df" % (os.path.getsize("samples/" + value["file"]) // 4),
                                open("samples/" + value["file"], "rb").read())
        off = float(os.environ.get("DOUBLE_OFF", "0")) * max(map(abs, numbers))
        outputs.append({{"name": value["name"], "dimensions": "1x4", "values": [n + off for n in numbers]}})
json.dump(outputs, open(options["exportOutput"], "w"))
"""
NVPMODEL = """#!/bin/sh
[ "$1" = -q ] || exit 9
echo "NV Power Mode: $DOUBLE_MODE"
echo 3
"""


@functools.cache
def artifact(spec: str) -> Path:
    """The complete artifact for a target, made once; nobody changes it."""
    target = make_target(spec)
    assert isinstance(target, EmittedTarget)
    folder = Path(tempfile.mkdtemp(prefix="greencc-artifact-"))
    atexit.register(shutil.rmtree, folder)
    return shipped(target, folder).parent


class Device:
    """A folder of an artifact, and a PATH that has nothing but the doubles."""

    def __init__(self, spec: str, folder: Path) -> None:
        self.folder = Path(shutil.copytree(artifact(spec), folder / "artifact"))
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in ("dirname", "sed", "head", "rm", "mv", "tr", "cat", "grep", "tail", "tee"):
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)
        self.add("trtexec", TRTEXEC.format(python=sys.executable))
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
        "argparse", "array", "importlib", "json", "math", "os", "pathlib", "shutil", "subprocess", "sys", "tempfile",
        "typing",
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
    done = device.build("--workspace", "much")
    assert done.returncode == 1
    assert "give a number of MiB" in done.stderr


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
        ("100900", "TensorRT 10.9", "tensorrt:version=10.9,gpu=jetson-orin-nano"),
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
TOLD = {"flags": [], "layers": {}}
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
    def serialize(self): return b"cache"
class Config:
    if __version__ >= "8.4" or NEW:
        def set_memory_pool_limit(self, pool, size): TOLD["workspace"] = size
    def set_flag(self, flag): TOLD["flags"].append(flag.name)
    def add_optimization_profile(self, profile): pass
    def create_timing_cache(self, content):
        TOLD["cache"] = content.decode()
        return Cache()
    def set_timing_cache(self, cache, mismatch): return True
    def get_timing_cache(self): return Cache()
    def __setattr__(self, key, value):
        if key == "max_workspace_size": TOLD["workspace"] = value
        TOLD[key] = str(value)
class Builder:
    num_DLA_cores = 0
    def __init__(self, logger): pass
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
    device: Device, version: str, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    modules = device.bin.parent / "modules"
    modules.mkdir(exist_ok=True)
    (modules / "tensorrt.py").write_text(FAKE_TENSORRT)
    command = (sys.executable, "-B", str(device.folder / "build.py"), *options)
    return device.run(*command, PYTHONPATH=str(modules), DOUBLE_VERSION=version, **environment)


def told(device: Device) -> dict[str, object]:
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

#!/usr/bin/env python3
"""Builds engine.plan of model.onnx with TensorRT's Python API, on the device that it is for.

The same as build.sh, where there is no trtexec. It runs on Python 3.6 and later with TensorRT 8.2 and later, and needs
nothing but the module `tensorrt` (JetPack: python3-libnvinfer) or `tensorrt_rtx`.
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Set

HERE = Path(__file__).resolve().parent


class BuildError(Exception):
    """What stops the build, and what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def main(arguments: List[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Build engine.plan of model.onnx with TensorRT's Python API."
    )
    parser.add_argument(
        "--workspace", type=int, metavar="MIB", help="memory that the builder may try kernels with"
    )
    parser.add_argument(
        "--any-version", action="store_true", help="build with another TensorRT than asked for"
    )
    parser.add_argument("--verbose", action="store_true", help="show the builder's log")
    options = parser.parse_args(arguments)
    try:
        settings = read_settings(HERE / "device.json")
        trt = load_module(settings)
        check_version(trt, settings, options.any_version)
        workspace = settings["workspace_mib"] if options.workspace is None else options.workspace
        if workspace < 1:
            raise BuildError("--workspace is %d" % workspace, "give a number of MiB")
        build(trt, settings, workspace, options.verbose)
    except BuildError as problem:
        sys.stderr.write("build.py: %s\n" % problem)
        if problem.hint:
            sys.stderr.write("  %s\n" % problem.hint)
        return 1
    sys.stdout.write("engine.plan is built; check it with: python3 check.py\n")
    return 0


def read_settings(path: Path) -> Dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as stream:
            settings = json.load(stream)
    except (OSError, ValueError) as error:
        raise BuildError(
            "cannot read device.json: %s" % error, "copy the whole folder to the device"
        ) from error
    if settings.get("schema") != "greencc.tensorrt/2":
        raise BuildError("device.json is not of this version", "copy the whole folder to the device")
    return settings  # type: ignore[no-any-return]


def load_module(settings: Dict[str, Any]) -> Any:
    name = settings["module"]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        hints = {
            "tensorrt": "on a Jetson: sudo apt install python3-libnvinfer; on a PC: pip install tensorrt",
            "tensorrt_rtx": "pip install tensorrt-rtx",
        }
        raise BuildError("Python's module %s cannot be imported (%s)" % (name, error), hints[name]) from error


def check_version(trt: Any, settings: Dict[str, Any], any_version: bool) -> None:
    if settings["module"] != "tensorrt":
        return
    found = ".".join(str(trt.__version__).split(".")[:2])
    if found != settings["tensorrt"] and not any_version:
        raise BuildError(
            "this device has TensorRT %s, and the graph was made for %s" % (found, settings["tensorrt"]),
            "compile again for it (greencc compile --target), or try it with --any-version",
        )


def build(trt: Any, settings: Dict[str, Any], workspace: int, verbose: bool) -> None:
    logger = trt.Logger(trt.Logger.VERBOSE if verbose else trt.Logger.WARNING)
    if hasattr(trt, "init_libnvinfer_plugins"):
        # Some operators are plugins of TensorRT's own.
        trt.init_libnvinfer_plugins(logger, "")
    builder = make_builder(trt, logger)
    network = builder.create_network(network_flags(trt, settings["network_flags"]))
    parse(trt, network, logger, HERE / settings["model"])
    config = builder.create_builder_config()
    set_workspace(trt, config, workspace)
    for name in settings["builder_flags"]:
        config.set_flag(flag(trt, name))
    for name in settings["cleared_flags"]:
        config.clear_flag(flag(trt, name))
    keep_float32(trt, network, set(settings["float32_nodes"]))
    if settings["dla"]:
        use_dla(trt, builder, config)
    add_profile(builder, config, settings["shapes"])
    cache_file = HERE / "timing.cache"
    # TensorRT for RTX keeps none: it compiles kernels where they run.
    cache = open_cache(config, cache_file) if settings["module"] == "tensorrt" else None
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(
            "TensorRT gave no engine; its log is above",
            "where memory ran out: close other programs, add swap"
            + (", or give --workspace %d" % (workspace // 2) if workspace > 1 else ""),
        )
    if cache is not None:
        write(cache_file, bytes(config.get_timing_cache().serialize()))
    write(HERE / "engine.plan", bytes(plan))


def make_builder(trt: Any, logger: Any) -> Any:
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        # What its constructor raises without a GPU or a driver: "factory function returned nullptr".
        raise BuildError(
            "TensorRT does not start here: %s" % error,
            "run this on the device; where it has a GPU, its driver may be too old (its log is above)",
        ) from error
    if not builder:
        raise BuildError("TensorRT found no GPU", "run this on the device; its log is above")
    return builder


def network_flags(trt: Any, names: List[str]) -> int:
    kinds = trt.NetworkDefinitionCreationFlag
    found = 0
    for name in names:
        # What a newer version has no name for any more it always does.
        if hasattr(kinds, name):
            found |= 1 << int(getattr(kinds, name))
    return found


def parse(trt: Any, network: Any, logger: Any, path: Path) -> None:
    if not path.is_file():
        raise BuildError("%s is not here" % path.name, "copy the whole folder to the device")
    parser = trt.OnnxParser(network, logger)
    # By name, so that it finds the data file beside it.
    if not parser.parse_from_file(str(path)):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise BuildError("TensorRT cannot read the graph: %s" % "; ".join(errors or ["no reason given"]))


def set_workspace(trt: Any, config: Any, mib: int) -> None:
    if hasattr(config, "set_memory_pool_limit"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, mib << 20)
    else:  # before 8.4
        config.max_workspace_size = mib << 20


def flag(trt: Any, name: str) -> Any:
    found = getattr(trt.BuilderFlag, name, None)
    if found is None:
        raise BuildError("this TensorRT has no builder flag %s" % name, "compile again for its version")
    return found


def keep_float32(trt: Any, network: Any, names: Set[str]) -> None:
    """Layers that are computed in float32 whatever the flags allow."""
    for index in range(network.num_layers if names else 0):
        layer = network.get_layer(index)
        if layer.name in names:
            layer.precision = trt.float32
            for output in range(layer.num_outputs):
                if layer.get_output(output).dtype == trt.float32:
                    layer.set_output_type(output, trt.float32)


def use_dla(trt: Any, builder: Any, config: Any) -> None:
    if builder.num_DLA_cores < 1:
        raise BuildError("this device has no DLA that TensorRT can use", "compile again without dla=true")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = 0


def add_profile(builder: Any, config: Any, shapes: Dict[str, Dict[str, List[int]]]) -> None:
    if not shapes:
        return
    profile = builder.create_optimization_profile()
    for name in sorted(shapes):
        sizes = shapes[name]
        profile.set_shape(name, tuple(sizes["min"]), tuple(sizes["opt"]), tuple(sizes["max"]))
    config.add_optimization_profile(profile)


def open_cache(config: Any, path: Path) -> Any:
    if not hasattr(config, "create_timing_cache"):
        return None
    # One of another TensorRT or GPU is given as nothing, or refused: then an empty one.
    for content in (path.read_bytes() if path.is_file() else b"", b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def write(path: Path, content: bytes) -> None:
    temporary = path.with_name("%s.%d.tmp" % (path.name, os.getpid()))
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise BuildError("cannot write %s: %s" % (path.name, error.strerror), "free some space") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

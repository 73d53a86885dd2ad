"""Lines that TensorRT and trtexec have written in the field, and what is made of them."""

from __future__ import annotations

import pytest

from greencc.agent.backends.faults import FAULTS, explain, failure, last_errors

E = "[04/14/2024-20:30:12] [E] [TRT] "
LINES = [
    (
        E
        + "6: The engine plan file is not compatible with this version of TensorRT, expecting library version "
        "10.0.1.6 got 10.0.0.6, please rebuild.",
        "input",
        "another version of TensorRT (10.0.1.6 here, and not 10.0.0.6)",
    ),
    (
        E
        + "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not compatible "
        "with this version of TensorRT, expecting library version 10.7.0.23)",
        "input",
        "another version of TensorRT",
    ),
    (
        E
        + "6: The engine plan file is generated on an incompatible device, expecting compute 7.2 got compute 5.3, "
        "please rebuild.",
        "input",
        "another GPU (7.2 here, and not 5.3)",
    ),
    (
        E
        + "1: [stdArchiveReader.cpp::StdArchiveReader::30] Error Code 1: Serialization (Serialization assertion "
        "magicTagRead == kMAGIC_TAG failed.Magic tag does not match)",
        "input",
        "damaged",
    ),
    (
        "[I] [TRT] No importer registered for op: GridSample. Attempting to import as plugin.",
        "input",
        "GridSample",
    ),
    (
        "[W] parsers/onnx/onnx2trt_utils.hpp:365: UNSUPPORTED_NODE:\n",
        None,
        "",
    ),
    (
        E
        + "ModelImporter.cpp:779: ERROR: ModelImporter.cpp:180 In function parseGraph: [6] Invalid Node - Conv_0",
        None,
        "",
    ),
    (
        E + "In node 3 with name: Quant_1 and operator: QuantizeLinear (importQuantizeLinear): INVALID_NODE: "
        "shiftIsAllZeros",
        "input",
        "shiftIsAllZeros",
    ),
    (
        E
        + "4: [network.cpp::validate::2965] Error Code 4: Internal Error (Network has dynamic or shape inputs, but no "
        "optimization profile has been defined.)",
        "input",
        "no shape profile",
    ),
    (
        "[04/14/2021-20:30:12] [W] Dynamic dimensions required for input: images, but no shapes were provided. "
        "Automatically overriding shape to: 1x3x224x224",
        "input",
        "input images has free dimensions",
    ),
    ("[E] Cannot create DLA engine, 0 not available", "unavailable", "no DLA"),
    (
        E
        + "9: Default DLA is enabled but layer conv1 [Convolution] is not supported on DLA and GPU fallback is not "
        "enabled.",
        "unavailable",
        "the DLA does not run the layer conv1",
    ),
    (
        E
        + "Error Code 9: API Usage Error (Networks with FP8 Q/DQ layers require hardware with FP8 support.)",
        "unavailable",
        "does not compute in FP8",
    ),
    (
        E
        + "2: [virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory (no further information)",
        "memory",
        "memory",
    ),
    (
        E + "1: [defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)",
        "memory",
        "memory",
    ),
    (
        "[W] [TRT] Tactic Device request: 414MB Available: 216MB. Device memory is insufficient to use tactic.",
        "memory",
        "for building",
    ),
    ("[E] Unknown option: --stronglyTyped ", "unavailable", "--stronglyTyped"),
    ("Cuda failure: no CUDA-capable device is detected", "unavailable", "CUDA does not start"),
    (
        E
        + "6: [convolutionBuilder.cpp] CUDA initialization failure with error: 35. Please check your CUDA installation",
        "unavailable",
        "driver is too old",
    ),
    (
        E
        + "10: [optimizer.cpp::computeCosts::2033] Error Code 10: Internal Error (Could not find any implementation "
        "for node Conv_119 + Add_182.)",
        "unavailable",
        "no implementation of Conv_119 + Add_182",
    ),
    ("[E] Failed to parse onnx file", "input", "cannot read the model"),
    ("terminate called: write: No space left on device", "disk", "full"),
    ("[I] [TRT] out of memory is what this line of information speaks of", None, ""),
    ("[V] [TRT] Dynamic dimensions required for input: x, but no shapes were provided", None, ""),
    ("[I] Engine built in 3.2 sec.", None, ""),
]


@pytest.mark.parametrize(("line", "kind", "text"), LINES)
def test_known_lines(line: str, kind: str | None, text: str) -> None:
    found = explain(["[I] === Device Information ===", line, "&&&& FAILED TensorRT.trtexec"])
    if kind is None:
        assert found is None
    else:
        assert found is not None
        assert found.kind == kind
        assert text in found.message
        assert found.hint


def test_causes_come_before_what_follows_from_them() -> None:
    lines = [
        "[W] [TRT] Tactic Device request: 414MB Available: 216MB. Device memory is insufficient to use tactic.",
        E + "10: Error Code 10: Internal Error (Could not find any implementation for node Conv_1.)",
        "[E] Engine could not be created from network",
    ]
    found = explain(lines)
    assert found is not None
    assert found.kind == "memory"


def test_the_node_that_was_being_read_is_named() -> None:
    """As parsers of today write, which do not say that there is no importer."""
    lines = [
        '[E] [TRT] ModelImporter.cpp:140: While parsing node number 1 [Shrug -> "y"]:',
        "[E] [TRT] ModelImporter.cpp:142: --- Begin node ---",
        "[E] [TRT] ModelImporter.cpp:151: ERROR: onnxOpCheckers.cpp:998 In function checkFallbackPluginImporter:",
        '[6] creator && "Plugin not found, are the plugin name, version, and namespace correct?"',
    ]
    found = explain(lines)
    assert found is not None
    assert found.message == "TensorRT does not know an operator of the model (node 1, Shrug)"


def test_unknown_failures_are_quoted() -> None:
    problem = failure("building", ["[I] hello", E + "something new", "[E] Engine set up failed"])
    assert problem.kind == "internal"
    assert problem.message == "building: something new; Engine set up failed"
    assert failure("building", []).message == "building: it said nothing"
    assert last_errors(["a", "b"], 1) == ["b"]


def test_every_fault_tells_what_to_do() -> None:
    assert all(fault.hint and fault.message for fault in FAULTS)

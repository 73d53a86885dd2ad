"""`model.json`: what lies beside it, what runs it, and what its steps are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from greencc.core.capabilities import Arithmetic
from greencc.core.data import TensorSpec
from greencc.core.errors import InputError

SCHEMA = "greencc.tvm/1"
FILE_NAME = "model.json"
LIBRARY = "model.so"
WEIGHTS = "weights.bin"
RUNNER = "runner"
"""The program of models for machines that may have no Python."""
MAX_BYTES = 16 << 20
MAX_ROWS = 100_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DTYPE = re.compile(r"(u?int(8|16|32|64)|float(16|32|64)|bfloat16|bool)")


@dataclass(frozen=True)
class Label:
    """What a step computes, in terms of the model: a node (or the first of those fused), and in what arithmetic."""

    node: str
    op_type: str
    arithmetic: Arithmetic = Arithmetic.FLOAT

    @property
    def kind(self) -> str:
        """The type as profiles call it: ``Conv:int8`` where it computes on integers."""
        return self.op_type if self.arithmetic is Arithmetic.FLOAT else f"{self.op_type}:int8"


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and hexadecimal SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """See the module's docstring.

    Attributes:
        inputs: In the library's order; symbolic dimensions are names.
        outputs: Likewise.
        triple: What the code was generated for; `cpu` likewise.
        features: LLVM's names of the instruction sets that the code may use.
        tvm: The version that generated the code.
        steps: One label per step of the plan.
        library: The file `LIBRARY`.
        weights: The file `WEIGHTS`.
        runner: The file `RUNNER`, where there is one.
        findings: What runs slower than it could, and why: one sentence each.
        part: The most samples of a batch that run at once; 0: all.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    triple: str
    cpu: str
    features: tuple[str, ...]
    tvm: str
    steps: tuple[Label, ...]
    library: FileFacts
    weights: FileFacts
    runner: FileFacts | None = None
    findings: tuple[str, ...] = ()
    part: int = 0

    def dump(self) -> str:
        """The JSON text."""
        data = {
            "schema": SCHEMA,
            "inputs": [_dump_spec(spec) for spec in self.inputs],
            "outputs": [_dump_spec(spec) for spec in self.outputs],
            "triple": self.triple,
            "cpu": self.cpu,
            "features": list(self.features),
            "tvm": self.tvm,
            "kernels": [
                {"node": step.node, "op_type": step.op_type, "arithmetic": step.arithmetic.value}
                for step in self.steps
            ],
            "findings": list(self.findings),
            "part": self.part,
            "files": {
                name: {"size": facts.size, "sha256": facts.sha256}
                for name, facts in ((LIBRARY, self.library), (WEIGHTS, self.weights), (RUNNER, self.runner))
                if facts is not None
            },
        }
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_description(path: Path) -> Description:
    """Read and validate a description; no other file is touched.

    Raises:
        InputError: It is missing, too large, not JSON, of another schema, or malformed.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} does not exist", hint=f"a compiled model is a folder with {FILE_NAME}")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MB")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    return _Reader(str(path)).description(data)


@dataclass(frozen=True)
class _Reader:
    """Turns parsed JSON into a description, with errors that name the key."""

    where: str

    def description(self, data: Any) -> Description:
        found = data.get("schema") if isinstance(data, dict) else None
        if found != SCHEMA:
            raise InputError(f"{self.where} has schema {found!r}", hint=f"this version reads {SCHEMA!r}")
        files = data.get("files")
        if not isinstance(files, dict) or set(files) - {RUNNER} != {LIBRARY, WEIGHTS}:
            raise self.wrong("files")
        features = data.get("features")
        if not isinstance(features, list) or not all(isinstance(name, str) for name in features):
            raise self.wrong("features")
        findings = data.get("findings", [])
        if not isinstance(findings, list) or not all(isinstance(text, str) for text in findings):
            raise self.wrong("findings")
        part = data.get("part", 0)
        if not isinstance(part, int) or isinstance(part, bool) or not 0 <= part < 1 << 32:
            raise self.wrong("part")
        return Description(
            inputs=tuple(self.spec(row, "inputs") for row in self.rows(data, "inputs")),
            outputs=tuple(self.spec(row, "outputs") for row in self.rows(data, "outputs")),
            triple=self.text(data, "triple"),
            cpu=self.text(data, "cpu"),
            features=tuple(features),
            tvm=self.text(data, "tvm"),
            steps=tuple(self.label(row) for row in self.rows(data, "kernels")),
            library=self.file(files[LIBRARY]),
            weights=self.file(files[WEIGHTS]),
            runner=self.file(files[RUNNER]) if RUNNER in files else None,
            findings=tuple(findings),
            part=part,
        )

    def wrong(self, key: str) -> InputError:
        return InputError(f"{self.where}: {key!r} is missing or malformed")

    def text(self, row: dict[str, Any], key: str) -> str:
        value = row.get(key)
        if not isinstance(value, str):
            raise self.wrong(key)
        return value

    def rows(self, data: dict[str, Any], key: str) -> list[dict[str, Any]]:
        rows = data.get(key)
        if (
            not isinstance(rows, list)
            or len(rows) > MAX_ROWS
            or not all(isinstance(row, dict) for row in rows)
        ):
            raise self.wrong(key)
        return rows

    def file(self, entry: Any) -> FileFacts:
        size, digest = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise self.wrong("files")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise self.wrong("files")
        return FileFacts(size, digest)

    def label(self, row: dict[str, Any]) -> Label:
        arithmetic = self.text(row, "arithmetic")
        if arithmetic not in {known.value for known in Arithmetic}:
            raise self.wrong("arithmetic")
        return Label(self.text(row, "node"), self.text(row, "op_type"), Arithmetic(arithmetic))

    def spec(self, row: dict[str, Any], key: str) -> TensorSpec:
        shape = row.get("shape")
        if not isinstance(shape, list) or len(shape) > 16:
            raise self.wrong(key)
        for size in shape:
            whole = isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 62
            if not whole and not isinstance(size, str) and size is not None:
                raise self.wrong(key)
        return TensorSpec(self.text(row, "name"), self.dtype(self.text(row, "dtype"), key), tuple(shape))

    def dtype(self, name: str, key: str) -> np.dtype[Any]:
        if not _DTYPE.fullmatch(name):
            raise InputError(f"{self.where}: {key} has the unknown type {name!r}")
        return numpy_dtype(name)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's type of a TVM type that has one."""
    if name == "bfloat16":
        import ml_dtypes

        extended: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return extended
    return np.dtype(name)


def _dump_spec(spec: TensorSpec) -> dict[str, Any]:
    assert spec.shape is not None
    return {"name": spec.name, "dtype": spec.dtype.name, "shape": list(spec.shape)}


def labels_for(
    symbols: Sequence[str], known: Mapping[str, Sequence[Label]], fallback: Arithmetic = Arithmetic.FLOAT
) -> tuple[Label, ...]:
    """The label of each call: the next one of its symbol's, and the last of them for any further call.

    Kernels that are not known come from TVM and are called by their symbols, e.g. ``fused_add_relu``.
    """
    used: dict[str, int] = {}
    labels = []
    for symbol in symbols:
        given = known.get(symbol, ())
        turn = used.get(symbol, 0)
        used[symbol] = turn + 1
        labels.append(given[min(turn, len(given) - 1)] if given else Label(symbol, symbol, fallback))
    return tuple(labels)

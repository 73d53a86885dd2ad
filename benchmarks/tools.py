"""What `bench_quantization` compares: greencc's recipes and the peers, each with its form, its method and its settings.

Rows of one form compete for accuracy and error; rows of one method, which do the same work, for time and memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cases import ROOT

RECIPES = ROOT / "benchmarks" / "recipes"
ENVIRONMENTS = ROOT / ".venv"

INT8 = "INT8"
DYNAMIC = "INT8 dynamic"
INT4 = "INT4 weights"
FORMS = (INT8, DYNAMIC, INT4)
SLOW = ("adaround",)


@dataclass(frozen=True)
class Tool:
    """One way to quantize a model.

    Attributes:
        key: Its name in results and folders.
        label: Its name in tables.
        form: What the artifact is: INT8, INT8 dynamic or INT4 weights.
        method: What decides the numbers; time and memory are compared within a method. Empty: with none.
        job: Name of the build job.
        arguments: Settings of the job.
        environment: Peers that need PyTorch have an environment `.venv/bench-NAME` of their own.
        runtime: What runs the artifact.
        needs: Operator without which a model has nothing for it: such models are left out rather than failed.
        transformer: Arguments that take the place of some of `arguments` on transformers, where the peer's
            documentation asks for them.
    """

    key: str
    label: str
    form: str
    method: str
    job: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: str = ""
    runtime: str = "onnxruntime"
    needs: str = ""
    transformer: dict[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.job in ("build-greencc", "compile-greencc")

    @property
    def python(self) -> Path:
        """The interpreter that the job runs in."""
        if not self.environment:
            return Path(sys.executable)
        return ENVIRONMENTS / f"bench-{self.environment}" / "bin" / "python"

    def settings(self, transformer: bool) -> dict[str, Any]:
        """The arguments of the job for a model."""
        return {**self.arguments, **(self.transformer if transformer else {})}


COMPILE = Tool("greencc-compile", "greencc compile", INT8, "", "compile-greencc")
"""What a user gets from one command; the goals are judged on it."""


def _recipe(name: str, label: str, form: str, method: str, *, needs: str = "") -> Tool:
    return Tool(
        f"greencc-{name}",
        f"greencc {label}",
        form,
        method,
        "build-greencc",
        {"recipe": f"{name}.toml"},
        needs=needs,
    )


def _ort(method: str) -> Tool:
    return Tool(
        f"ort-{method}",
        f"ORT static, {method}",
        INT8,
        method,
        "build-ort",
        {"method": method},
        transformer=_ORT_TRANSFORMER,
    )


# With all the operators it knows, ONNX Runtime's quantizer takes scores and masks too: MiniLM falls from 80 to 61 %.
# Of the settings tried, these give the smallest error on both transformers here (-0.2 -> 16.8 dB, 10.8 -> 14.5 dB).
_ORT_TRANSFORMER = {
    "ops": ["Conv", "Gather", "Gemm", "MatMul"],
    "extra": {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
}
_NNCF_TRANSFORMER = {"model_type": "transformer"}
# Quark's own settings for transformers; they fail with weights per channel (0.13: AttributeError).
_QUARK_TRANSFORMER = {"config": "INT8_TRANSFORMER_DEFAULT", "per_channel": False}

TOOLS: tuple[Tool, ...] = (
    COMPILE,
    _recipe("minmax", "min-max", INT8, "minmax"),
    _ort("minmax"),
    Tool("olive", "Olive static (default)", INT8, "minmax", "build-olive", environment="olive"),
    Tool("aimet", "AIMET (default)", INT8, "minmax", "build-aimet", environment="aimet"),
    _recipe("percentile", "percentile", INT8, "percentile"),
    _ort("percentile"),
    Tool(
        "quark",
        "Quark (U8S8_AAWS)",
        INT8,
        "percentile",
        "build-quark",
        environment="quark",
        transformer=_QUARK_TRANSFORMER,
    ),
    _recipe("entropy", "entropy", INT8, "entropy"),
    _ort("entropy"),
    _recipe("mse", "MSE", INT8, "mse"),
    _recipe("mse-bias", "MSE, bias correction", INT8, "bias correction"),
    Tool("nncf", "NNCF", INT8, "bias correction", "build-nncf", transformer=_NNCF_TRANSFORMER),
    Tool(
        "nncf-openvino",
        "NNCF, in OpenVINO",
        INT8,
        "",
        "build-nncf",
        {"form": "openvino"},
        runtime="openvino",
        transformer=_NNCF_TRANSFORMER,
    ),
    _recipe("smooth-quant", "SmoothQuant, MSE", INT8, "smooth", needs="MatMul"),
    _recipe("repaired", "MSE, greedy rounding, bias correction", INT8, "repaired"),
    _recipe("equalize-adaround", "CLE, AdaRound", INT8, "adaround"),
    Tool(
        "aimet-adaround",
        "AIMET CLE, AdaRound",
        INT8,
        "adaround",
        "build-aimet",
        {"equalize": True, "adaround": 2000},
        environment="aimet",
    ),
    Tool(
        "quark-adaround",
        "Quark U8S8_AAWS_ADAROUND",
        INT8,
        "adaround",
        "build-quark",
        {"config": "U8S8_AAWS_ADAROUND"},
        environment="quark",
    ),
    _recipe("dynamic", "dynamic", DYNAMIC, "dynamic"),
    Tool("ort-dynamic", "ORT dynamic", DYNAMIC, "dynamic", "build-ort-dynamic"),
    _recipe("w4-nearest", "W4 nearest", INT4, "w4 nearest", needs="MatMul"),
    Tool("ort-w4", "ORT MatMulNBits RTN", INT4, "w4 nearest", "build-ort-nbits", needs="MatMul"),
    _recipe("w4-gptq", "W4 GPTQ", INT4, "w4 tuned", needs="MatMul"),
    Tool(
        "ort-w4-k",
        "ORT MatMulNBits k-quant",
        INT4,
        "w4 tuned",
        "build-ort-nbits",
        {"algorithm": "k_quant"},
        needs="MatMul",
    ),
)


def chosen(
    peers: Sequence[str], tools: Sequence[Tool] = TOOLS, *, slow: bool = True
) -> tuple[list[Tool], list[str]]:
    """The tools that run, and the environments that were not asked for or not made.

    Args:
        peers: Environments asked for, or "all". Without AdaRound's peers greencc's AdaRound does not run either: it
            takes minutes and would have nobody to compare with.
        tools: What there is.
        slow: Run what takes minutes a model (AdaRound), too.
    """
    names = {tool.environment for tool in tools if tool.environment}
    wanted = {name for name in names if name in peers or "all" in peers}
    usable = [
        tool
        for tool in tools
        if not tool.environment or (tool.environment in wanted and tool.python.is_file())
    ]
    rivals = {tool.method for tool in usable if not tool.ours}
    kept = [tool for tool in usable if tool.method not in SLOW or (slow and tool.method in rivals)]
    return kept, sorted(names - {tool.environment for tool in usable})

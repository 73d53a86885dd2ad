"""What `bench_compression` compares: greencc's recipes of pruning and decomposition, and the peers at the same work.

Every method is asked for the same shares of the original's multiply-accumulates (MACs); what it reached is what counts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cases import ROOT

PYTHON = ROOT / ".venv" / "bench-torch" / "bin" / "python"
"""The environment with PyTorch, Torch-Pruning, onnx2torch and TensorLy; `make bench PEERS=torch` makes it."""

RATIOS = (0.25, 0.3, 0.5)
FEW = (0.25, 0.5)
TUNED_RATIOS = (0.5,)
"""Fine-tuning takes minutes, and is of use where much was removed."""

CASES: dict[str, Sequence[float]] = {
    "fashion-mnist (shipped)": FEW,
    "fmnist-resnet20": RATIOS,
    "fmnist-mobilenetv2": FEW,
    "cifar10-resnet8": FEW,
    "efficientnet-lite0": FEW,
    "minilm-sentiment": FEW,
    "visual-wake-words": FEW,
    "higgs-mlp": FEW,
}
TUNED_CASES = ("fmnist-resnet20", "cifar10-resnet8")
RESNETS = ("fashion-mnist (shipped)", "fmnist-resnet20", "cifar10-resnet8")
SMALL_RESNETS = ("fmnist-resnet20", "cifar10-resnet8")

FLOAT = "float"
INT8 = "INT8"
TUNED = "fine-tuned"
FORMS = (FLOAT, TUNED, INT8)
"""What competes with one another: the paired comparison with the best peer is within a form."""

POINTWISE, SPATIAL, PRODUCT = "1x1 convolutions", "k x k convolutions", "products"

Step = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """One way to a smaller network.

    Attributes:
        key: Its name in results and folders.
        label: Its name in tables and plots.
        form: FLOAT, TUNED or INT8.
        job: Name of the job that builds the artifact.
        steps: The recipe of `build-greencc`; a ratio of 1 stands for the share asked for, one of 0.5 for what each
            of two steps removes so that both together reach it.
        arguments: Settings of other jobs.
        needs: Kinds of layers; where none of them has a part in the work, the method is left out.
        torch: Whether it runs in the environment with PyTorch.
        start: Key of the method whose artifact is fine-tuned.
    """

    key: str
    label: str
    form: str
    job: str
    steps: tuple[Step, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    torch: bool = False
    start: str = ""

    @property
    def ours(self) -> bool:
        return self.key.startswith("greencc")

    @property
    def python(self) -> str:
        return str(PYTHON) if self.torch else sys.executable

    def recipe(self, ratio: float) -> str:
        """The text of its recipe for a share of the MACs."""
        each = {1.0: ratio, 0.5: 1.0 - math.sqrt(1.0 - ratio)}
        steps = [
            {**step, "ratio": round(each[step["ratio"]], 6)} if "ratio" in step else step
            for step in self.steps
        ]
        return recipe_text(steps)


def recipe_text(steps: Sequence[Step]) -> str:
    """Passes with their options as a recipe."""
    lines = ['schema = "greencc.recipe/1"']
    for step in steps:
        lines += ["", "[[pass]]", *(f"{option} = {_toml(value)}" for option, value in step.items())]
    return "\n".join(lines) + "\n"


def _toml(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


# What a pass measures would decide by this machine which points the curves have: here everything is kept, then judged.
def _prune(ratio: float = 1.0, *, repair: bool = True) -> Step:
    return {"name": "prune", "ratio": ratio, "score": "second-order", "repair": repair, "measured": False}


def _decompose(method: str, ratio: float = 1.0) -> Step:
    """The ratio is of the model's work: the same that the others are asked for."""
    return {
        "name": "decompose",
        "method": method,
        "rank": "ratio",
        "ratio": ratio,
        "repair": True,
        "measured": False,
    }


def _drop(ratio: float = 1.0) -> Step:
    return {"name": "drop-blocks", "ratio": ratio, "repair": True}


_INT8: Step = {"name": "quantize-int8", "method": "mse"}
_BOTH = (_prune(0.5), _decompose("auto", 0.5))
_DEPTH_AND_WIDTH = (_drop(0.5), _prune(0.5))

CLEANED = Method("greencc-cleaned", "greencc clean-up", FLOAT, "clean-greencc")
QUANTIZED = Method("greencc-int8", "greencc INT8", INT8, "build-greencc", (_INT8,))
BASES = (CLEANED, QUANTIZED)
"""What there is without removing anything: ratio 0."""

METHODS: tuple[Method, ...] = (
    Method("greencc-prune", "prune", FLOAT, "build-greencc", (_prune(repair=False),)),
    Method("greencc-prune-repair", "prune + repair", FLOAT, "build-greencc", (_prune(),)),
    Method("greencc-svd", "SVD", FLOAT, "build-greencc", (_decompose("svd"),), needs=(POINTWISE, PRODUCT)),
    Method("greencc-tucker", "Tucker-2", FLOAT, "build-greencc", (_decompose("tucker"),), needs=(SPATIAL,)),
    Method("greencc-both", "prune + decompose", FLOAT, "build-greencc", _BOTH),
    Method("greencc-drop", "drop blocks", FLOAT, "build-greencc", (_drop(),)),
    Method("greencc-drop-prune", "drop blocks + prune", FLOAT, "build-greencc", _DEPTH_AND_WIDTH),
    Method("greencc-prune-int8", "prune + repair + INT8", INT8, "build-greencc", (_prune(), _INT8)),
    Method("greencc-both-int8", "prune + decompose + INT8", INT8, "build-greencc", (*_BOTH, _INT8)),
    Method(
        "greencc-svd-int8",
        "SVD + INT8",
        INT8,
        "build-greencc",
        (_decompose("svd"), _INT8),
        needs=(POINTWISE, PRODUCT),
    ),
    Method(
        "greencc-tucker-int8",
        "Tucker-2 + INT8",
        INT8,
        "build-greencc",
        (_decompose("tucker"), _INT8),
        needs=(SPATIAL,),
    ),
    Method("greencc-drop-int8", "drop blocks + INT8", INT8, "build-greencc", (_drop(), _INT8)),
    Method(
        "greencc-drop-prune-int8",
        "drop blocks + prune + INT8",
        INT8,
        "build-greencc",
        (*_DEPTH_AND_WIDTH, _INT8),
    ),
    Method(
        "greencc-recover",
        "prune + repair + recover",
        TUNED,
        "recover",
        torch=True,
        start="greencc-prune-repair",
    ),
    # The same share of every group is Torch-Pruning's default, and better than global here in most places.
    Method(
        "torch-pruning", "Torch-Pruning", FLOAT, "prune-torch", arguments={"everywhere": False}, torch=True
    ),
    Method("torch-pruning-global", "Torch-Pruning, global", FLOAT, "prune-torch", torch=True),
    Method(
        "torch-pruning-8",
        "Torch-Pruning, multiples of 8",
        FLOAT,
        "prune-torch",
        arguments={"everywhere": False, "round_to": 8},
        torch=True,
    ),
    Method(
        "torch-pruning-tuned",
        "Torch-Pruning + same tuning",
        TUNED,
        "recover",
        torch=True,
        start="torch-pruning",
    ),
    Method("tensorly-tucker", "TensorLy Tucker-2", FLOAT, "tucker-tensorly", needs=(SPATIAL,), torch=True),
)


def chosen(
    case: str,
    work: set[str],
    ratio: float,
    *,
    torch: bool,
    quick: bool,
    methods: Sequence[Method] = METHODS,
) -> list[Method]:
    """The methods for a model at a share of the MACs, each after the one that it starts from.

    Args:
        case: Its name.
        work: Kinds of layers that have a part in the model's work.
        ratio: Share to be removed.
        torch: Whether the environment with PyTorch is there.
        quick: Fine-tune at the largest share only.
    """
    tuned = TUNED_RATIOS[-1:] if quick else TUNED_RATIOS
    return [
        method
        for method in methods
        if (torch or not method.torch)
        and (not method.needs or work.intersection(method.needs))
        and (not method.start or (case in TUNED_CASES and ratio in tuned))
    ]


def method_of(key: str) -> Method:
    """The method with a key."""
    return next(method for method in (*BASES, *METHODS) if method.key == key)


def has_torch() -> bool:
    """Whether the environment with PyTorch was made."""
    return Path(PYTHON).is_file()

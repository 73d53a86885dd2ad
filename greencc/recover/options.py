"""What `greencc recover` is asked to do, as validated data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from greencc.core.errors import UsageError


class Optimizer(Enum):
    """ADAM: Kingma and Ba, arXiv 1412.6980. SGD has a momentum of 0.9, after Nesterov."""

    ADAM = "adam"
    SGD = "sgd"


@dataclass(frozen=True)
class RecoverOptions:
    """How a compressed network is taught by the one it was made from.

    Attributes:
        epochs: Passes over the data.
        batch: Samples per step; a model with a fixed batch takes that instead.
        lr: Learning rate at its peak; a cosine takes it to zero (Loshchilov and Hutter, arXiv 1608.03983).
        optimizer: See `Optimizer`.
        temperature: Softens the class probabilities of both (Hinton et al., arXiv 1503.02531).
        features: Weight of the matching inner values in the loss; 0 leaves them out (Romero et al., arXiv 1412.6550).
        labels: Learn from the labels of the data as well.
        alpha: With labels, the share of the teacher in the loss.
        mixup: Blend each sample with another one; teacher and student see the blend (Beyer et al., arXiv 2106.05237).
        shift: Move images (rank 4) by up to this many pixels.
        flip: Mirror every other image left to right.
        group_sparsity: Weight of a group lasso that empties channels, which are then cut; 0 leaves it out.
        int8_share: Share of the epochs that a quantized network is trained with its rounding, at the end.
        seed: Of the order of the samples and of what is done to them.
    """

    epochs: int = 10
    batch: int = 64
    lr: float = 1e-3
    optimizer: Optimizer = Optimizer.ADAM
    temperature: float = 4.0
    features: float = 1.0
    labels: bool = False
    alpha: float = 0.7
    mixup: bool = False
    shift: int = 0
    flip: bool = False
    group_sparsity: float = 0.0
    int8_share: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("shift", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}", hint=f"give {least} or more")
        for name in ("lr", "temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value:g}", hint="give a positive number")
        for name in ("features", "group_sparsity"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} is {value:g}", hint="give 0 or a positive number")
        for name in ("alpha", "int8_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name} is {getattr(self, name):g}", hint="give a share between 0 and 1")

    def facts(self) -> dict[str, Any]:
        """The options as numbers and texts, for reports and keys."""
        return {
            name: value.value if isinstance(value, Enum) else value for name, value in asdict(self).items()
        }

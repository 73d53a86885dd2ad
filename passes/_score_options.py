"""What the scores of channels can be told, and what they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greencc.core.errors import UsageError

Float64 = NDArray[np.float64]
# The way out where the outputs of the model cannot be used.
OTHER_SCORE = "take score=second-order, which needs no gradients and no float outputs"


@dataclass(frozen=True)
class ScoreOptions:
    """Options of the scores; each is used by the scores that are named.

    Attributes:
        batch: Samples run at once while channels are observed (all but magnitude, FPGM and loss).
        damping: Added to the diagonal of the correlation matrix, at least (second order, correlation).
        loss_samples: Samples whose outputs are compared (loss).
        loss_seconds: When this time is over, no further sample is begun (loss).
        gradient_samples: Samples whose gradients are taken (Taylor, Fisher); fewer where the model is large.
        mini_batch: Samples whose mean gradient is squared (Taylor).
        seed: Of what is drawn (Fisher).
    """

    batch: int = 32
    damping: float = 1e-3
    loss_samples: int = 16
    loss_seconds: float = 120.0
    gradient_samples: int = 256
    mini_batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.loss_samples, self.gradient_samples, self.mini_batch) < 1:
            raise UsageError(
                "scores need at least one sample",
                hint="give batch, mini_batch and numbers of samples from 1 on",
            )
        if not self.damping > 0.0 or not np.isfinite(self.damping):
            raise UsageError(f"damping must be above 0, not {self.damping}", hint="the default is 0.001")
        if not self.loss_seconds > 0.0:
            raise UsageError(f"loss_seconds must be above 0, not {self.loss_seconds}")

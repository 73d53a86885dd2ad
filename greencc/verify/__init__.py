"""Verification: task metrics, paired comparison of two engines, certificates and per-layer errors."""

from greencc.verify.certificate import (
    Certificate,
    certify,
    certify_bounded,
    fixed_sequence,
    samples_needed,
    samples_needed_at_rate,
)
from greencc.verify.compare import compare
from greencc.verify.intervals import paired_drop
from greencc.verify.layers import LayerPair, layer_errors
from greencc.verify.metrics import Auto, Close, Metric, TopOne, parse_metric
from greencc.verify.user import UserMetric, load_user_metric

__all__ = [
    "Auto",
    "Certificate",
    "Close",
    "LayerPair",
    "Metric",
    "TopOne",
    "UserMetric",
    "certify",
    "certify_bounded",
    "compare",
    "fixed_sequence",
    "layer_errors",
    "load_user_metric",
    "paired_drop",
    "parse_metric",
    "samples_needed",
    "samples_needed_at_rate",
]

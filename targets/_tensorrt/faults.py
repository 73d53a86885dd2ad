"""What the linter reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """ERROR: TensorRT refuses the graph, or computes something else. WARNING: it is slower, or not what was meant."""

    ERROR = "error"
    WARNING = "warning"


class Rule(Enum):
    """What is checked; the value is its name for people and in JSON."""

    OPERATOR = "operator"
    CUSTOM_OPERATOR = "custom-operator"
    OPERATOR_FORM = "operator-form"
    OPERATOR_TYPE = "operator-type"
    OPSET = "opset"
    ELEMENT_TYPE = "element-type"
    INT64_RANGE = "int64-range"
    RANK = "rank"
    DYNAMIC_SHAPE = "dynamic-shape"
    DATA_DEPENDENT_SHAPE = "data-dependent-shape"
    CONTROL_FLOW = "control-flow"
    INPUT_DEFAULT = "input-default"
    QUANTIZED_TYPE = "quantized-type"
    MISSING_ZERO_POINT = "missing-zero-point"
    NONZERO_ZERO_POINT = "nonzero-zero-point"
    INT32_BIAS = "int32-bias"
    SCALE_TYPE = "scale-type"
    SCALE_VALUE = "scale-value"
    ACTIVATION_SCALE = "activation-scale"
    WEIGHT_AXIS = "weight-axis"
    QUANTIZED_OUTPUT = "quantized-output"
    BROKEN_FUSION = "broken-fusion"
    RESIDUAL_ADD = "residual-add"
    FLOAT_BRIDGE = "float-bridge"
    SMALL_PRODUCT = "small-product"
    NO_INT8 = "no-int8"
    NO_HALF = "no-half-precision"
    NO_FLOAT8 = "no-float8"
    SPARSITY = "sparsity"
    MEMORY = "memory"
    DLA_MISSING = "dla-missing"
    DLA_SHAPE = "dla-shape"
    DLA_LAYER = "dla-layer"


@dataclass(frozen=True)
class Fault:
    """One finding.

    Attributes:
        rule: What was checked.
        severity: See `Severity`.
        node: Name of the node, input or output; empty: the model as a whole.
        message: What happens there, one sentence without a full stop.
        hint: What to do about it.
    """

    rule: Rule
    severity: Severity
    node: str
    message: str
    hint: str


def error(rule: Rule, node: str, message: str, hint: str) -> Fault:
    """TensorRT refuses this, or computes something else."""
    return Fault(rule, Severity.ERROR, node, message, hint)


def warning(rule: Rule, node: str, message: str, hint: str) -> Fault:
    """It works, but slower than it could or not as was meant."""
    return Fault(rule, Severity.WARNING, node, message, hint)

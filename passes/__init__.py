"""Passes: what edits a model, one idea per module."""

from __future__ import annotations

from greencc.core.capabilities import Capabilities
from greencc.core.passes import Pass
from greencc.passes.absorb_bias import AbsorbBias
from greencc.passes.bound_softmax import BoundSoftmax
from greencc.passes.convert_qoperator import ConvertQOperator
from greencc.passes.decompose import Decompose
from greencc.passes.drop_blocks import DropBlocks
from greencc.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from greencc.passes.eliminate_dead_code import EliminateDeadCode
from greencc.passes.eliminate_no_ops import EliminateNoOps
from greencc.passes.equalize_layers import EqualizeLayers
from greencc.passes.float16 import ConvertFloat16
from greencc.passes.fold_affine import FoldAffine
from greencc.passes.fold_batch_norm import FoldBatchNorm
from greencc.passes.fold_constants import FoldConstants
from greencc.passes.fuse_gemm import FuseGemm
from greencc.passes.fuse_pad import FusePad
from greencc.passes.inline_functions import InlineFunctions
from greencc.passes.merge_convolutions import MergeConvolutions
from greencc.passes.merge_reshapes import MergeReshapes
from greencc.passes.move_transposes import MoveTransposes
from greencc.passes.normalize_clips import NormalizeClips
from greencc.passes.prune import Prune
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights
from greencc.passes.recover_attention import RecoverAttention
from greencc.passes.recover_gelu import RecoverGelu
from greencc.passes.recover_hard_swish import RecoverHardSwish
from greencc.passes.recover_layer_norm import RecoverLayerNorm
from greencc.passes.relax_clips import RelaxClips
from greencc.passes.smooth_quant import SmoothQuant
from greencc.passes.sparsify import Sparsify
from greencc.passes.split_outlier_channels import SplitOutlierChannels
from greencc.passes.upgrade_opset import UpgradeOpset

PASSES: tuple[type[Pass], ...] = (
    InlineFunctions,
    UpgradeOpset,
    FoldConstants,
    EliminateDeadCode,
    EliminateNoOps,
    MoveTransposes,
    MergeReshapes,
    NormalizeClips,
    FusePad,
    FoldBatchNorm,
    FoldAffine,
    MergeConvolutions,
    FuseGemm,
    RecoverAttention,
    RecoverGelu,
    RecoverHardSwish,
    RecoverLayerNorm,
    BoundSoftmax,
    EliminateCommonSubexpressions,
    RelaxClips,
    EqualizeLayers,
    AbsorbBias,
    SmoothQuant,
    SplitOutlierChannels,
    DropBlocks,
    Prune,
    Decompose,
    Sparsify,
    QuantizeInt8,
    QuantizeDynamic,
    QuantizeWeights,
    ConvertQOperator,
    ConvertFloat16,
)
"""All passes, by which recipes and the command line know them."""


def default_cleanup(capabilities: Capabilities, *, fold_inputs: bool = True) -> tuple[Pass, ...]:
    """The clean-up recipe: function-preserving passes in the order in which they help each other.

    Args:
        capabilities: Of the target.
        fold_inputs: See `FoldAffine.inputs`.
    """
    steps: list[Pass] = [
        InlineFunctions(),
        UpgradeOpset(),
        FoldConstants(),
        EliminateDeadCode(),
        EliminateNoOps(),
        EliminateCommonSubexpressions(),
        MoveTransposes(),
        MergeReshapes(),
        # Whole patterns first: folding takes their constants away into neighbouring weights.
        NormalizeClips(),
        RecoverGelu(),
        RecoverHardSwish(),
        RecoverLayerNorm(),
        FusePad(),
        FoldAffine(inputs=fold_inputs),
        FoldBatchNorm(),
        FoldAffine(inputs=fold_inputs),
        MergeConvolutions(),
    ]
    if capabilities.gemm_gains:
        steps.append(FuseGemm())
    steps += [BoundSoftmax(), MergeReshapes(), EliminateCommonSubexpressions(), EliminateDeadCode()]
    return tuple(steps)

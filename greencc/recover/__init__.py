"""Fine-tuning as an extra (`greencc[finetune]`): the original model teaches the compressed network of a bundle."""

from greencc.recover.job import RecoverJob, recover_bundle
from greencc.recover.options import Optimizer, RecoverOptions

__all__ = ["Optimizer", "RecoverJob", "RecoverOptions", "recover_bundle"]

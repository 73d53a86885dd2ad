"""ONNX graphs in PyTorch, which gives what ONNX has not: gradients. Part of the extra `greencc[finetune]`.

PyTorch is imported only when something is asked of it.
"""

from greencc.torch_graph.extra import differentiate, require_torch, torch_threads

__all__ = ["differentiate", "require_torch", "torch_threads"]

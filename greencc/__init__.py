"""greencc: an energy-aware model-compression compiler for ONNX models.

```python
import greencc

bundle = greencc.compile("model.onnx", calibration="calibration.npz", evaluation="eval.npz")
print(bundle.report.verdict)
outputs = bundle.run({"image": image})
```

Names are imported when they are first used, so that `import greencc` and the command line start quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from greencc.core.version import __version__

if TYPE_CHECKING:
    from greencc.api import compile, compile_matrix, measure_artifact, verify_accuracy  # noqa: A004
    from greencc.bundle import Bundle, load
    from greencc.compiler import CompileOptions, Effort, Matrix, Precision
    from greencc.core.errors import GreenccError, InputError, LimitError, UnavailableError, UsageError
    from greencc.core.report import Report
    from greencc.measure.carbon import CarbonOptions

_WHERE = {
    "Bundle": "greencc.bundle",
    "CarbonOptions": "greencc.measure.carbon",
    "CompileOptions": "greencc.compiler",
    "Effort": "greencc.compiler",
    "GreenccError": "greencc.core.errors",
    "InputError": "greencc.core.errors",
    "LimitError": "greencc.core.errors",
    "Matrix": "greencc.compiler",
    "Precision": "greencc.compiler",
    "Report": "greencc.core.report",
    "UnavailableError": "greencc.core.errors",
    "UsageError": "greencc.core.errors",
    "compile": "greencc.api",
    "compile_matrix": "greencc.api",
    "load": "greencc.bundle",
    "measure_artifact": "greencc.api",
    "verify_accuracy": "greencc.api",
}

__all__ = [
    "Bundle",
    "CarbonOptions",
    "CompileOptions",
    "Effort",
    "GreenccError",
    "InputError",
    "LimitError",
    "Matrix",
    "Precision",
    "Report",
    "UnavailableError",
    "UsageError",
    "__version__",
    "compile",
    "compile_matrix",
    "load",
    "measure_artifact",
    "verify_accuracy",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'greencc' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

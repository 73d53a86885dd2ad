"""OpenVINO's CPU plugin as an engine, to run what NNCF makes where NNCF means it to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.errors import InputError


class OpenVinoEngine:
    """A model compiled by OpenVINO for one stream.

    What is not quantized computes in FP32, as in ONNX Runtime: by default the plugin takes BF16 where the CPU has
    it, and the error would be the type's rather than the quantizer's.

    Args:
        path: `.xml` or `.onnx`.
        like: The original's engine: names and types of inputs and outputs are its.
    """

    def __init__(
        self, path: Path, like: tuple[Sequence[TensorSpec], Sequence[TensorSpec]], threads: int
    ) -> None:
        import openvino

        self.inputs, self.outputs = like
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            compiled = openvino.Core().compile_model(str(path), "CPU", settings)
            self._request = compiled.create_infer_request()
            # The plugin knows the tensors by their ONNX names.
            self._ports = {spec.name: compiled.output(spec.name) for spec in self.outputs}
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot run {path.name}: {str(error).splitlines()[0]}") from error

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; the arrays are copies."""
        try:
            self._request.infer(dict(feeds))
        except RuntimeError as error:
            raise InputError(f"OpenVINO fails: {str(error).splitlines()[0]}") from error
        names = self._ports if outputs is None else outputs
        return {name: self._request.get_tensor(self._ports[name]).data.copy() for name in names}

    def close(self) -> None:
        """Nothing is held beyond the object."""

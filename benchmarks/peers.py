"""Jobs of the peers that quantize: ONNX Runtime, NNCF, Olive, AIMET-ONNX and AMD Quark.

Each is called as its documentation advises for a CPU, on the same samples. Settings beyond that are arguments,
so that the table of tools (`benchmarks/tools.py`) says which were used. Every import is inside its job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.job_tools import Clock, Result, feeds, has_vnni


def build_ort(
    model: str,
    calibration: str,
    samples: int,
    folder: str,
    method: str = "minmax",
    ops: Sequence[str] | None = None,
    extra: dict[str, Any] | None = None,
) -> Result:
    """`quant_pre_process` and `quantize_static`: per-channel QDQ, unsigned activations, signed weights.

    `reduce_range` follows ONNX Runtime's own advice: 7-bit weights on x86 without VNNI. `ops` limits the operators;
    by default it takes all that it knows, and that ruins transformers whose masks add a huge negative number.
    """
    import numpy as np
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._items = feeds(np.load(calibration), samples)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._items, None)

    calibrators = {
        "minmax": CalibrationMethod.MinMax,
        "moving-average": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
        "distribution": CalibrationMethod.Distribution,
    }
    clock = Clock()
    artifact = Path(folder) / "model.onnx"
    quantize_static(
        _ort_prepared(model, Path(folder), clock),
        str(artifact),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=calibrators[method],
        op_types_to_quantize=None if ops is None else list(ops),
        reduce_range=not has_vnni(),
        extra_options={"CalibMovingAverage": method == "moving-average", **(extra or {})},
    )
    return clock.result(artifact)


def build_ort_dynamic(model: str, calibration: str, samples: int, folder: str) -> Result:
    """`quantize_dynamic`: weights signed and per channel, activations at run time; no data."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del calibration, samples
    clock = Clock()
    artifact = Path(folder) / "model.onnx"
    quantize_dynamic(
        _ort_prepared(model, Path(folder), clock),
        str(artifact),
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=not has_vnni(),
    )
    return clock.result(artifact)


def build_ort_nbits(
    model: str, calibration: str, samples: int, folder: str, bits: int = 4, algorithm: str = "rtn"
) -> Result:
    """`MatMulNBitsQuantizer`: blocks of 32 weights, asymmetric; `k_quant` searches the scale of each block; no data."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        KQuantWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    del calibration, samples
    clock = Clock()
    artifact = Path(folder) / "model.onnx"
    plain = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False, bits=bits)
    config = KQuantWeightOnlyQuantConfig() if algorithm == "k_quant" else plain
    prepared = onnx.load(_ort_prepared(model, Path(folder), clock))
    quantizer = MatMulNBitsQuantizer(prepared, bits=bits, block_size=32, algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(artifact))
    found = {node.op_type for node in onnx.load(artifact).graph.node}
    if "MatMulNBits" not in found:
        raise RuntimeError("nothing was quantized: the model has no MatMul with a constant weight")
    return clock.result(artifact)


def build_nncf(
    model: str,
    calibration: str,
    samples: int,
    folder: str,
    model_type: str | None = None,
    form: str = "onnx",
    **options: Any,
) -> Result:
    """`nncf.quantize` with its defaults and `subset_size=samples`, on the ONNX or the OpenVINO backend.

    `model_type="transformer"` is what its documentation asks for on transformers.
    """
    import nncf
    import numpy as np

    if form == "openvino":
        import openvino
    else:
        import onnx

    clock = Clock()
    dataset = nncf.Dataset(list(feeds(np.load(calibration), samples)))
    chosen = {"subset_size": samples, **options}
    if model_type is not None:
        chosen["model_type"] = nncf.ModelType(model_type)
    if form == "openvino":
        artifact = _folder(folder) / "model.xml"
        converted = nncf.quantize(openvino.convert_model(model), dataset, **chosen)
        openvino.save_model(converted, str(artifact), compress_to_fp16=False)
    else:
        artifact = _folder(folder) / "model.onnx"
        onnx.save(nncf.quantize(onnx.load(model), dataset, **chosen), str(artifact))
    return clock.result(artifact)


def build_olive(model: str, calibration: str, samples: int, folder: str, **options: Any) -> Result:
    """Olive's `OnnxStaticQuantization` pass with its defaults, and what `options` change."""
    import numpy as np
    from olive.data.component.dataset import DummyDataset  # noqa: F401 - loads the registry
    from olive.data.config import DataComponentConfig, DataConfig
    from olive.data.registry import Registry
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxStaticQuantization

    @Registry.register_dataset("bench_dataset")  # type: ignore[untyped-decorator]
    def bench_dataset(**_: Any) -> list[Any]:
        return [(item, 0) for item in feeds(np.load(calibration), samples)]

    @Registry.register_dataloader("bench_loader")  # type: ignore[untyped-decorator]
    def bench_loader(dataset: Any, **_: Any) -> Any:
        return dataset

    clock = Clock()
    data = DataConfig(
        name="bench",
        type="DataContainer",
        load_dataset_config=DataComponentConfig(type="bench_dataset"),
        pre_process_data_config=DataComponentConfig(type="skip_pre_process"),
        dataloader_config=DataComponentConfig(type="bench_loader"),
        post_process_data_config=DataComponentConfig(type="skip_post_process"),
    )
    step = create_pass_from_dict(
        OnnxStaticQuantization, {"data_config": data, **options}, disable_search=True
    )
    built = step.run(ONNXModelHandler(model), str(_folder(folder) / "olive"))
    artifact = Path(folder) / "model.onnx"
    Path(built.model_path).replace(artifact)
    return clock.result(artifact)


def build_aimet(
    model: str,
    calibration: str,
    samples: int,
    folder: str,
    equalize: bool = False,
    adaround: int = 0,
    scheme: str = "min_max",
) -> Result:
    """AIMET-ONNX: W8A8 per channel; optionally CLE before and AdaRound (with that many iterations) after.

    It is exported as QDQ with INT32 biases, so that ONNX Runtime has integer kernels for it.
    """
    import aimet_onnx
    import numpy as np
    import onnx
    from aimet_onnx.common.quantsim_config.utils import get_path_for_per_channel_config
    from aimet_onnx.cross_layer_equalization import equalize_model

    clock = Clock()
    artifact = _folder(folder) / "model.onnx"
    inputs = list(feeds(np.load(calibration), samples))
    source = onnx.load(model)
    if equalize:
        equalize_model(source)
    sim = aimet_onnx.QuantizationSimModel(
        source,
        param_type=aimet_onnx.int8,
        activation_type=aimet_onnx.int8,
        quant_scheme=scheme,
        config_file=get_path_for_per_channel_config(),
    )
    if adaround:
        aimet_onnx.apply_adaround(sim, inputs, num_iterations=adaround)
    sim.compute_encodings(inputs)
    onnx.save(sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), str(artifact))
    return clock.result(artifact)


def build_quark(
    model: str, calibration: str, samples: int, folder: str, config: str = "U8S8_AAWS", **options: Any
) -> Result:
    """AMD Quark for ONNX with one of its named configurations, weights per channel."""
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config.config import Config
    from quark.onnx.quantization.config.custom_config import get_default_config

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._items = list(feeds(np.load(calibration), samples))
            self.rewind()

        def rewind(self) -> None:
            self._next = iter(self._items)

        def reset_iter(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, Any] | None:
            return next(self._next, None)

    clock = Clock()
    artifact = _folder(folder) / "model.onnx"
    settings = get_default_config(config)
    settings.per_channel = True
    for name, value in options.items():
        setattr(settings, name, value)
    ModelQuantizer(Config(global_quant_config=settings)).quantize_model(model, str(artifact), Reader())
    return clock.result(artifact)


def _ort_prepared(model: str, folder: Path, clock: Clock) -> str:
    """The model after `quant_pre_process`; without symbolic shapes where it cannot infer them."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder.mkdir(parents=True, exist_ok=True)
    prepared = folder / "prepared.onnx"
    try:
        quant_pre_process(model, str(prepared))
    except Exception:  # noqa: BLE001 - it raises plain exceptions
        clock.discard()
        quant_pre_process(model, str(prepared), skip_symbolic_shape=True)
    return str(prepared)


def _folder(path: str) -> Path:
    found = Path(path)
    found.mkdir(parents=True, exist_ok=True)
    return found


PEER_JOBS: dict[str, Callable[..., Result]] = {
    "build-ort": build_ort,
    "build-ort-dynamic": build_ort_dynamic,
    "build-ort-nbits": build_ort_nbits,
    "build-nncf": build_nncf,
    "build-olive": build_olive,
    "build-aimet": build_aimet,
    "build-quark": build_quark,
}

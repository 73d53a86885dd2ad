"""What runs in processes of its own: one build by greencc or a peer, one calibration, one clean-up.

Nothing heavy is imported before a job starts, so that every job pays for its own imports and no others.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def build_greencc(model: str, calibration: str, samples: int, folder: str, method: str = "minmax") -> Result:
    """Load, clean up, calibrate, quantize, save: what `greencc compile` does to build its INT8 form.

    The pipeline is the product's own, with its gate: after every pass that changed something the shapes are
    inferred, the model is checked, and its outputs on 2 samples are compared. The peers check nothing of the kind.
    """
    from greencc.calibration import open_data, take
    from greencc.core.describe import input_specs
    from greencc.core.model import load_model
    from greencc.core.passes import Context
    from greencc.core.pipeline import Pipeline
    from greencc.passes import default_cleanup
    from greencc.passes.quantize_int8 import QuantizeInt8, RangeMethod
    from greencc.targets.cpu import CpuTarget

    started = time.perf_counter()
    target = CpuTarget()
    source = load_model(Path(model))
    data = take(open_data(calibration, input_specs(source)), samples)
    context = Context(
        capabilities=target.capabilities(),
        build=target.reference,
        samples=[batch.feeds for batch in take(data, 2).batches(1)],
        calibration=data,
        observe=target.calibration_engine,
    )
    steps = (*default_cleanup(context.capabilities), QuantizeInt8(method=RangeMethod(method)))
    built, records = Pipeline(context).run(source, steps)
    artifact = target.build(target.lower(built), Path(folder))
    return {
        "artifact": str(artifact),
        "job_seconds": time.perf_counter() - started,
        "passes": {f"{i:02d} {record.name}": record.seconds for i, record in enumerate(records)},
    }


def build_ort(model: str, calibration: str, samples: int, folder: str, method: str = "minmax") -> Result:
    """`quant_pre_process` and `quantize_static`: per-channel QDQ, unsigned activations, signed weights.

    `reduce_range` follows ONNX Runtime's own advice: 7-bit weights on x86 without VNNI.
    """
    import numpy as np
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._items = _feeds(np.load(calibration), samples)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._items, None)

    started = time.perf_counter()
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    prepared, artifact = out / "prepared.onnx", out / "model.onnx"
    quant_pre_process(model, str(prepared))
    quantize_static(
        str(prepared),
        str(artifact),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method={"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}[
            method
        ],
        reduce_range=not _has_vnni(),
    )
    return {"artifact": str(artifact), "job_seconds": time.perf_counter() - started}


def build_nncf(model: str, calibration: str, samples: int, folder: str) -> Result:
    """`nncf.quantize` on the ONNX backend with its defaults and `subset_size=samples`."""
    import nncf
    import numpy as np
    import onnx

    started = time.perf_counter()
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    artifact = out / "model.onnx"
    dataset = nncf.Dataset(list(_feeds(np.load(calibration), samples)))
    quantized = nncf.quantize(onnx.load(model), dataset, subset_size=samples)
    onnx.save(quantized, str(artifact))
    return {"artifact": str(artifact), "job_seconds": time.perf_counter() - started}


def clean_greencc(model: str, folder: str) -> Result:
    """greencc's clean-up passes for this machine, gated on synthetic inputs."""
    from greencc.calibration import synthetic
    from greencc.core.describe import input_specs
    from greencc.core.model import load_model
    from greencc.core.passes import Context
    from greencc.core.pipeline import Pipeline
    from greencc.passes import default_cleanup
    from greencc.targets.cpu import CpuTarget

    started = time.perf_counter()
    target = CpuTarget()
    source = load_model(Path(model))
    inputs = input_specs(source)
    batch = inputs[0].batch or 1
    samples = [item.feeds for item in synthetic(inputs, 2 * batch).batches(batch)]
    context = Context(capabilities=target.capabilities(), build=target.reference, samples=samples)
    built, records = Pipeline(context).run(source, default_cleanup(context.capabilities))
    artifact = target.build(target.lower(built), Path(folder))
    rolled_back = [record.name for record in records if record.rolled_back]
    return {
        "artifact": str(artifact),
        "job_seconds": time.perf_counter() - started,
        "rolled_back": rolled_back,
    }


def clean_onnxslim(model: str, folder: str) -> Result:
    """`onnxslim.slim` with its defaults."""
    import onnxslim

    started = time.perf_counter()
    Path(folder).mkdir(parents=True, exist_ok=True)
    artifact = Path(folder) / "model.onnx"
    onnxslim.slim(model, str(artifact))
    return {"artifact": str(artifact), "job_seconds": time.perf_counter() - started}


def clean_onnxsim(model: str, folder: str) -> Result:
    """`onnxsim.simplify` with its defaults."""
    import onnx
    import onnxsim

    started = time.perf_counter()
    Path(folder).mkdir(parents=True, exist_ok=True)
    artifact = Path(folder) / "model.onnx"
    simplified, valid = onnxsim.simplify(onnx.load(model))
    if not valid:
        raise RuntimeError("onnxsim says that its result is not equivalent")
    onnx.save(simplified, str(artifact))
    return {"artifact": str(artifact), "job_seconds": time.perf_counter() - started}


JOBS: dict[str, Callable[..., Result]] = {
    "build-greencc": build_greencc,
    "build-ort": build_ort,
    "build-nncf": build_nncf,
    "clean-greencc": clean_greencc,
    "clean-onnxslim": clean_onnxslim,
    "clean-onnxsim": clean_onnxsim,
}


def _feeds(archive: Any, samples: int) -> Iterator[dict[str, Any]]:
    """Feeds of one sample each, as the peers' examples give them; samples are spread over the archive."""
    arrays = {name: archive[name] for name in archive.files if name != "labels"}
    count = len(next(iter(arrays.values())))
    for index in range(min(samples, count)):
        yield {name: values[index : index + 1] for name, values in arrays.items()}


def _has_vnni() -> bool:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return bool(re.search(r"avx512_vnni|avx_vnni|asimd", text))


def peak_mb() -> float:
    """Peak resident memory of this process in MB (10^6 bytes).

    Linux: `VmHWM`, because `ru_maxrss` still shows the peak of the process that forked this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def main(request: str, answer: str) -> None:
    """Do the job that `request` (JSON) describes and write the result to the file `answer`."""
    asked = json.loads(request)
    limit = asked["memory_limit_mb"]
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit * 10**6, limit * 10**6))
    result = JOBS[asked["job"]](**asked["arguments"])
    result["peak_mb"] = peak_mb()
    result["cpu_seconds"] = time.process_time()
    Path(answer).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

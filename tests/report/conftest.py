"""Two reports: one with everything in it, names included that try to break out, and one with next to nothing."""

from __future__ import annotations

import random
from typing import Any

import pytest

from greencc.core.passes import Finding
from greencc.core.report import (
    REST,
    Accuracy,
    BreakEven,
    Budget,
    CalibrationInfo,
    Candidate,
    Carbon,
    CompileInfo,
    Embodied,
    Energy,
    Figures,
    GridIntensity,
    Interval,
    Latency,
    LayerChoice,
    LayerEnergies,
    LayerEnergy,
    LayerError,
    LayerShare,
    LayerTime,
    ModelInfo,
    OutputError,
    PassRecord,
    Ratio,
    Report,
)
from greencc.report.verdict import with_verdict

from .planned import with_plan


def _latency(seed: int, median: float, spread: float, runs: int) -> Latency:
    generator = random.Random(seed)
    samples = sorted(
        round(
            median
            + abs(generator.gauss(0, spread))
            - 0.4 * spread
            + (generator.random() < 0.04) * 4 * spread,
            4,
        )
        for _ in range(runs)
    )
    return Latency(
        median=samples[runs // 2],
        p95=samples[int(runs * 0.95)],
        p99=samples[int(runs * 0.99)],
        runs=runs,
        samples=tuple(samples),
    )


def _layers() -> tuple[tuple[LayerTime, ...], tuple[LayerError, ...]]:
    generator = random.Random(7)
    times, errors = [], []
    for index in range(60):
        block, part = divmod(index, 4)
        kind = ("Conv", "Conv", "Add", "Relu")[part]
        name = f"/backbone/features/stage{block // 4}/inverted_residual_block.{block}/depthwise_separable.{part}/{kind}"
        before = round(generator.uniform(40, 420) if kind == "Conv" else generator.uniform(5, 40), 2)
        after = None if kind == "Relu" else round(before * generator.uniform(0.35, 0.75), 2)
        times.append(LayerTime(name, kind, before, after))
        errors.append(LayerError(name, kind, round(46 - 0.3 * index + generator.uniform(-5, 5), 2)))
    times.append(LayerTime("input_QuantizeLinear", "QuantizeLinear", None, 35.0))
    times.append(LayerTime("<script>alert(1)</script>", "Softmax", 9.0, 9.5))
    errors[41] = LayerError(errors[41].name, "Conv", 15.2)
    errors.append(LayerError("<script>alert(1)</script>", "Softmax", 17.9))
    return tuple(times), tuple(errors)


def _rounded(*values: float) -> Interval:
    """To the digits of report.json."""
    return Interval(*(float(f"{value:.6g}") for value in values))


def _energies(layers: tuple[LayerTime, ...]) -> LayerEnergies:
    """By time; 5 % lie between the layers."""

    def share(us: float | None, total_us: float, total_mj: float) -> LayerShare | None:
        if us is None:
            return None
        part = 0.95 * us / total_us
        mj = part * total_mj
        return LayerShare(_rounded(part, 0.9 * part, 1.1 * part), _rounded(mj, 0.7 * mj, 1.5 * mj))

    sums = (sum(row.baseline_us or 0.0 for row in layers), sum(row.artifact_us or 0.0 for row in layers))
    rows = [
        LayerEnergy(
            row.name,
            row.op_type,
            share(row.baseline_us, sums[0], 402.0),
            share(row.artifact_us, sums[1], 214.0),
        )
        for row in layers
    ]
    rest = [
        LayerShare(Interval(0.05, 0.04, 0.06), _rounded(0.05 * mj, 0.03 * mj, 0.08 * mj))
        for mj in (402.0, 214.0)
    ]
    return LayerEnergies(
        Interval(402.0, 310.0, 520.0),
        Interval(214.0, 170.0, 280.0),
        "D",
        "package (model)",
        "attributed by model from profiled times, counted operations and bytes; the totals are estimated, gross",
        (*rows, LayerEnergy(REST, "", rest[0], rest[1])),
    )


def full() -> Report:
    layers, errors = _layers()
    report = Report(
        greencc="0.1.0",
        created="2025-11-22T04:31:00+00:00",
        verdict="",
        precision="int8",
        model=ModelInfo("fashion_resnet <b>.onnx", "9f2c" * 16, 2_783_914, 214_335_488, 17, 61),
        target="cpu:threads=2",
        device={
            "name": "Intel(R) Xeon(R) Processor @ 2.10GHz",
            "fingerprint": "5e1d" * 16,
            "cores": 2,
            "isa": "AVX512-VNNI",
        },
        conditions={"governor": "unknown", "load": 0.31, "threads": 2, "batch": 1, "effort": "standard"},
        versions={"greencc": "0.1.0", "onnxruntime": "1.31.0", "onnx": "1.23.0", "numpy": "2.3.5"},
        baseline=Figures(
            latency_ms=_latency(1, 12.4, 0.5, 400),
            energy_mj=Energy(402.0, 310.0, 520.0, "D", "package (model)", "TDP x load"),
            size_bytes=11_184_532,
            peak_memory_mb=96.4,
            accuracy=0.9244,
        ),
        artifact=Figures(
            latency_ms=_latency(2, 6.7, 0.35, 400),
            energy_mj=Energy(214.0, 170.0, 280.0, "D", "package (model)", "TDP x load"),
            size_bytes=2_893_117,
            peak_memory_mb=61.2,
            accuracy=0.9231,
        ),
        ratio=Ratio(
            latency=Interval(1.84, 1.79, 1.9),
            energy=Interval(1.88, 1.62, 2.17),
            size=Interval(3.87, 3.87, 3.87),
        ),
        accuracy=Accuracy(
            metric="top-1 accuracy (logits)",
            baseline=0.9244,
            artifact=0.9231,
            drop=0.0013,
            low=-0.0011,
            high=0.0038,
            agreement=0.9902,
            n=4500,
            certified=True,
            epsilon=0.01,
            confidence=0.95,
            failures=18,
            p_value=2.6e-06,
            n_needed=None,
            reason="certified: with 95 % confidence the drop in accuracy is at most 1 % "
            "(18 of 4,500 samples got worse)",
            outputs=(
                OutputError("logits", 31.42, 0.999712, 1.8311),
                OutputError("label", None, None, None, 0.0098),
            ),
            improved=12,
        ),
        budget=Budget({"precision": "auto", "max_drop": 0.01, "confidence": 0.95}, met=True),
        candidates=(
            Candidate("original", 12.6, 0.0, False, "measured 1.01x slower than fp32"),
            Candidate("fp32", 12.4, 0.0, False, "measured 1.84x slower than int8-minmax"),
            Candidate("fp16", None, None, False, "the CPU has no FP16 kernels: casts would be emulated"),
            Candidate("int8-minmax", 6.7, 0.0015, True, "fastest within the accuracy limit"),
            Candidate("int8-percentile", 6.8, 0.0042, False, "measured as fast, larger drop"),
        ),
        passes=(
            PassRecord("fold-constants", {}, 14, 0.0, False, (), 0.12),
            PassRecord(
                "fold-batch-norm",
                {"forward": True, "backward": True},
                20,
                3.1e-07,
                False,
                (
                    Finding(
                        "refused",
                        "BatchNormalization has two consumers of its input",
                        node="/backbone/features/stage3/inverted_residual_block.12/bn_2/BatchNormalization",
                        rule="bn-into-conv",
                    ),
                ),
                0.31,
            ),
            PassRecord(
                "fuse-hard-swish",
                {},
                0,
                0.013,
                True,
                (
                    Finding(
                        "rolled-back",
                        "fuse-hard-swish was rolled back: outputs moved by 0.013 of their range, more than the "
                        "tolerance 0.0001; the first rewrite at fault is hard-swish at node '/head/act/Mul_1'",
                        node="/head/act/Mul_1",
                        rule="hard-swish",
                    ),
                ),
                0.44,
            ),
            PassRecord(
                "quantize-int8",
                {
                    "method": "minmax",
                    "percentile": 99.99999,
                    "skip": ("Softmax", "<img src=x onerror=alert(1)>"),
                },
                48,
                0.021,
                False,
                (
                    Finding(
                        "left-in-float", "Softmax has no integer kernel", node="<script>alert(1)</script>"
                    ),
                    Finding("note", "weights keep 8 bits: AVX512-VNNI sums u8 x s8 products in 32 bits"),
                ),
                3.87,
            ),
        ),
        calibration=CalibrationInfo("data/fashion-mnist-calibration.npz", "77ab" * 16, 256, False),
        layers=layers,
        layer_errors=errors,
        warnings=(
            "the CPU governor could not be read: clocks may move during the measurement",
            "another process used 31 % of one core during 3 blocks; they were discarded",
        ),
        layer_choices=(
            LayerChoice(
                "<img src=x>/head",
                "Conv",
                "float",
                "it costs more accuracy than it saves energy",
                0.0312,
                41.5,
                0.11,
            ),
            LayerChoice(
                "/stem",
                "Conv",
                "float",
                "measured slower as INT8 (52 us) than in float (40 us)",
                None,
                -12.0,
                -0.02,
            ),
            LayerChoice("/body", "Conv", "int8", "", 1.2e-5, 120.0, 0.4),
        ),
        compile=CompileInfo(
            21.4,
            412.7,
            {"loading": 0.2, "calibration": 3.1, "measuring": 12.9, "verifying": 5.2},
            Energy(
                512.0,
                240.0,
                980.0,
                "D",
                "package (model)",
                "estimated, gross: 38 s of CPU time in 21.4 s on 2 cores x power law; this run alone: "
                "3 results of earlier runs came from the cache",
            ),
            BreakEven(Interval(2723.0, 1980.0, 4110.0), "estimated, grade D: both sides by the same model"),
        ),
        layer_energy=_energies(layers),
        carbon=Carbon(
            baseline_ug=Interval(6.25, 4.82, 8.09),
            artifact_ug=Interval(3.33, 2.64, 4.36),
            grid=GridIntensity(56.0, "France (FR)", 2023, "Our World in Data"),
            embodied=Embodied(120.0, 4.0),
            grade="D",
            boundary="package (model)",
        ),
    )
    return with_verdict(report)


def minimal() -> Report:
    latency = Latency(0.084, 0.091, 0.103, 50)
    figures = Figures(latency, None, 48_211, None, None)
    one = Interval(1.0, 1.0, 1.0)
    report = Report(
        greencc="0.1.0",
        created="2025-11-22T04:31:00+00:00",
        verdict="",
        precision="fp32",
        model=ModelInfo("tiny", "00" * 32, 12_042, None, 13, 4),
        target="cpu",
        device={},
        conditions={},
        versions={},
        baseline=figures,
        artifact=figures,
        ratio=Ratio(Interval(1.0, 0.97, 1.02), None, one),
        accuracy=Accuracy(
            metric="none",
            baseline=None,
            artifact=None,
            drop=None,
            low=None,
            high=None,
            agreement=None,
            n=0,
            certified=False,
            epsilon=0.01,
            confidence=0.95,
            failures=None,
            p_value=None,
            n_needed=None,
            reason="not certified: no evaluation data was given",
        ),
        budget=Budget({"precision": "auto"}, met=True),
        candidates=(
            Candidate("fp32", 0.084, None, True, "fastest"),
            Candidate("int8-minmax", 0.117, None, False, "measured 1.4x slower than fp32"),
        ),
        passes=(),
        calibration=None,
        layers=(),
        layer_errors=(),
        warnings=(),
        compile=CompileInfo(1.4, None),
    )
    return with_verdict(report)


@pytest.fixture
def full_report() -> Report:
    return full()


@pytest.fixture
def minimal_report() -> Report:
    return minimal()


@pytest.fixture
def planned_report() -> Report:
    return with_plan(full())


@pytest.fixture
def reports() -> dict[str, Any]:
    return {"full": full(), "minimal": minimal(), "planned": with_plan(full())}

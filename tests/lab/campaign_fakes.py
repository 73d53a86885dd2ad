"""A bench that builds and measures nothing: figures with a known truth, and a log of what it was asked for."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from greencc.core.errors import GreenccError
from greencc.core.report import Accuracy, Energy, Interval
from greencc.lab.campaign_bench import Measured, Subject
from greencc.lab.campaign_file import parse_campaign
from greencc.lab.campaign_inputs import Inputs
from greencc.lab.campaign_record import Blocks, Figures, Made, Side, Times
from greencc.lab.campaign_run import run_test_campaign
from greencc.lab.campaign_spec import CampaignSpec, Cell, DeviceSpec

TEXT = """
schema = "greencc.campaign/1"
name = "fake"
[[model]]
name = "net"
path = "net.onnx"
calibration = "synthetic"
[[variant]]
name = "original"
original = true
[[variant]]
name = "small"
precision = "int8"
[[device]]
name = "here"
[protocol]
name = "quick"
repetitions = 3
seed = 5
"""


def make_spec(folder: Path, text: str = TEXT) -> CampaignSpec:
    """A campaign whose files are there; nothing reads them."""
    (folder / "net.onnx").write_bytes(b"a model")
    path = folder / "campaign.toml"
    path.write_text(text, encoding="utf-8")
    return parse_campaign(text, path)


def accuracy(drop: float = 0.002, **changes: Any) -> Accuracy:
    values: dict[str, Any] = {
        "metric": "top-1", "baseline": 0.9, "artifact": 0.9 - drop, "drop": drop, "low": drop - 0.003,
        "high": drop + 0.003, "agreement": 0.98, "n": 4000, "certified": True, "epsilon": 0.01, "confidence": 0.95,
        "failures": 20, "p_value": 0.001, "n_needed": None, "reason": "",
    }  # fmt: skip
    return Accuracy(**{**values, **changes})


@dataclass
class FakeBench:
    """Ratios scatter between repetitions by `between`, within by `within` (log standard deviations)."""

    latency: Mapping[str, float] = field(default_factory=lambda: {"original": 1.0, "small": 2.0})
    between: float = 0.01
    within: float = 0.005
    grade: str | None = "B"
    net: bool = True
    clean: bool = True
    problems: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, GreenccError] = field(default_factory=dict)
    seed: int = 0
    meter_fails_in: tuple[int, ...] = ()
    pause: float = 0.0
    version: str = "1"
    built: list[Cell] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    interrupt_after: int | None = None
    log: Path | None = None

    def inputs(self) -> Inputs:
        return Inputs(
            "c0ffee",
            {"net model": "aa"},
            {"greencc": self.version},
            {"here": "ff"},
            {"here": {"cpu": "Fake"}},
        )

    def problem(self, device: DeviceSpec) -> str | None:
        return self.problems.get(device.name)

    def subject(self, cell: Cell, bundles: Path) -> Subject:
        self.built.append(cell)
        if cell.variant in self.failures:
            raise self.failures[cell.variant]
        if cell.variant == "original":
            return Subject(Path("net.onnx"), Made("original"))
        return Subject(bundles / cell.variant, Made("int8", f"bundles/{cell.variant}.greencc", accuracy()))

    def measure(self, cell: Cell, subject: Subject) -> Measured:
        del subject
        if self.interrupt_after is not None and len(self.cells) >= self.interrupt_after:
            raise KeyboardInterrupt
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as stream:
                print(cell, file=stream)
        time.sleep(self.pause)
        self.cells.append(cell)
        draw = np.random.default_rng([self.seed, cell.repetition, len(cell.variant)])
        truth = self.latency.get(cell.variant, 1.5)
        log = math.log(truth) + float(draw.normal(0.0, math.hypot(self.between, self.within)))
        ratio = Interval(math.exp(log), math.exp(log - 2 * self.within), math.exp(log + 2 * self.within))
        gross = 12.0 if self.net else None
        energy = (
            None if self.grade is None else Energy(10.0, 9.0, 11.0, self.grade, "test rail", "made up", gross)
        )
        smaller = (
            None
            if energy is None
            else Energy(
                10.0 / truth, 9.0 / truth, 11.0 / truth, self.grade or "", "test rail", "made up", gross
            )
        )
        return Measured(
            Figures(
                Side(Times(4.0, 5.0, 6.0), 4000, energy, 10.0),
                Side(Times(4.0 / ratio.value, 3.0, 4.0), 1000, smaller, 5.0),
                ratio,
                ratio if energy is not None else None,
                self.clean,
                Blocks(3, {"another process was busy": 1}, (40.0, 45.0), 0.02),
                "all rounds are measured",
            ),
            tuple(
                {"role": role, "block": number, "pair": 1, "seconds": 0.5, "inferences": 100, "note": "two\nlines"}
                for number, role in enumerate(("baseline", "artifact", "artifact", "baseline"), 1)
            ),
            {"governor": "performance", "threads": "1"},
            ("the load average is 3.2 on 2 CPUs",),
            "the plug failed 3 times in a row: no answer" if cell.repetition in self.meter_fails_in else None,
        )  # fmt: skip


if __name__ == "__main__":
    # A process to be killed: slow cells, each logged when it begins.
    place = Path(sys.argv[1])
    run_test_campaign(
        make_spec(place), place / "out", FakeBench(pause=float(sys.argv[2]), log=place / "log.txt")
    )

"""Run a test campaign: build what is missing, measure what is not measured yet, write the summary after every cell."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from greencc.core.errors import GreenccError, UnavailableError
from greencc.core.files import atomic_file
from greencc.core.progress import Progress, silent
from greencc.lab.campaign_bench import Bench, Subject
from greencc.lab.campaign_record import CellRecord, Made, Status
from greencc.lab.campaign_spec import CampaignSpec, Cell
from greencc.lab.campaign_store import CampaignStore, check_same, open_store, read_records, read_state
from greencc.lab.campaign_summarise import summarise
from greencc.report.campaign_html import render_campaign
from greencc.report.campaign_markdown import render_campaign_markdown
from greencc.report.campaign_summary import CampaignSummary, dump_summary

PAGE = "index.html"


@dataclass(frozen=True)
class Plan:
    """What a run would do: all cells in their order, those that are done, and why devices cannot be used."""

    cells: tuple[Cell, ...]
    done: frozenset[Cell]
    problems: Mapping[str, str]


@dataclass(frozen=True)
class RunCallbacks:
    """What a caller hears: progress of steps, and every cell as it is finished."""

    progress: Progress = silent
    finished: Callable[[CellRecord, int, int], None] = lambda record, number, total: None


def plan_run(spec: CampaignSpec, folder: Path, bench: Bench, *, fresh: bool = False) -> Plan:
    """What a run would do; nothing is written.

    Raises:
        InputError: The folder holds another campaign, or is damaged.
        UsageError: The text of a meter makes no sense.
    """
    done: frozenset[Cell] = frozenset()
    if not fresh and (state := read_state(folder)) is not None:
        check_same(state, bench.inputs().state(), folder)
        done = frozenset(record.cell for record in read_records(folder) if record.status == "measured")
    return Plan(spec.cells(), done, _problems(spec, bench))


def run_test_campaign(
    spec: CampaignSpec,
    folder: Path,
    bench: Bench,
    *,
    fresh: bool = False,
    callbacks: RunCallbacks | None = None,
) -> CampaignSummary:
    """Run what is left of a campaign and write the summary.

    All variants are built before anything is measured: a compile warms the machine. A cell that cannot be built or
    measured, or whose meter failed, is kept with the reason and tried again by the next run. When the run is
    interrupted, the error gets a note that says how far it came.

    Args:
        spec: The campaign.
        folder: Of the results.
        bench: Builds and measures.
        fresh: Begin anew.
        callbacks: Who listens.

    Raises:
        InputError: The folder holds another campaign, is used by another run, or cannot be written.
        UsageError: The text of a meter makes no sense.
    """
    listener = callbacks or RunCallbacks()
    # Before the folder is touched: a mistake here must not leave one behind.
    inputs, problems = bench.inputs(), _problems(spec, bench)
    with open_store(folder, inputs.state(), fresh=fresh) as store:
        run = _Run(spec, store, bench, problems, listener)
        try:
            run.go()
        except KeyboardInterrupt as error:
            done, total = len(store.measured()), len(spec.cells())
            error.add_note(
                f"{done} of {total} measurements are kept in {folder}; the same command goes on from there"
            )
            raise
        return run.summary()


def _problems(spec: CampaignSpec, bench: Bench) -> dict[str, str]:
    return {device.name: found for device in spec.devices if (found := bench.problem(device)) is not None}


_Key = tuple[str, str, str]


class _Run:
    """One run as it goes on."""

    def __init__(
        self,
        spec: CampaignSpec,
        store: CampaignStore,
        bench: Bench,
        problems: Mapping[str, str],
        listener: RunCallbacks,
    ) -> None:
        self.spec, self.store, self.bench, self.problems, self.listener = (
            spec,
            store,
            bench,
            problems,
            listener,
        )
        self.built: dict[_Key, Subject | GreenccError] = {}

    def go(self) -> None:
        cells = self.spec.cells()
        done = self.store.measured()
        pending = [cell for cell in cells if cell not in done]
        self._build(pending)
        for cell in self.listener.progress(pending, label="Measuring", total=len(pending)):
            record = self._measure(cell)
            self.summary()
            self.listener.finished(record, cells.index(cell) + 1, len(cells))
        self.summary()

    def summary(self) -> CampaignSummary:
        """Write the summary as it stands."""
        store = self.store
        found = summarise(
            self.spec, store.latest(), self.bench.inputs(), store.folder, str(store.state["created"])
        )
        for name, text in (
            ("summary.json", dump_summary(found)),
            ("summary.md", render_campaign_markdown(found)),
            (PAGE, render_campaign(found)),
        ):
            with atomic_file(store.folder / name) as file:
                file.write_text(text, encoding="utf-8", newline="\n")
        return found

    def _build(self, pending: list[Cell]) -> None:
        wanted = {_key(cell): cell for cell in pending if cell.device not in self.problems}
        for key, cell in self.listener.progress(wanted.items(), label="Building", total=len(wanted)):
            try:
                self.built[key] = self.bench.subject(cell, self.store.bundles)
            except GreenccError as error:
                self.built[key] = error

    def _measure(self, cell: Cell) -> CellRecord:
        started, begin = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()

        def record(status: Status, reason: str | None, made: Made | None = None) -> CellRecord:
            return CellRecord(
                cell.model, cell.variant, cell.device, cell.repetition, status, started, time.monotonic() - begin,
                reason, made,
            )  # fmt: skip

        if cell.device in self.problems:
            found = record("unavailable", self.problems[cell.device])
            self.store.add(found, ())
            return found
        subject = self.built[_key(cell)]
        if isinstance(subject, GreenccError):
            found = record(_status(subject), f"not built: {subject}")
            self.store.add(found, ())
            return found
        try:
            seen = self.bench.measure(cell, subject)
        except GreenccError as error:
            found = record(_status(error), str(error), subject.made)
            self.store.add(found, ())
            return found
        found = CellRecord(
            cell.model, cell.variant, cell.device, cell.repetition, "partial" if seen.problem else "measured", started,
            time.monotonic() - begin, None, subject.made, seen.figures, seen.conditions, seen.warnings,
            seen.problem or None,
        )  # fmt: skip
        own = {
            "campaign": self.spec.name,
            "model": cell.model,
            "variant": cell.variant,
            "device": cell.device,
            "repetition": cell.repetition,
        }
        self.store.add(found, [{**own, **row} for row in seen.blocks])
        return found


def _key(cell: Cell) -> _Key:
    return cell.model, cell.variant, cell.device


def _status(error: GreenccError) -> Status:
    return "unavailable" if isinstance(error, UnavailableError) else "failed"

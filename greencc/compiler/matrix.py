"""One model for several targets in one run: one bundle each, and one report that puts them side by side.

Targets are compiled one after the other. They share the model and the data as opened, and through the cache whatever
does not depend on the target: statistics, rounding decisions, accuracies of equal artifacts. A target that fails keeps
that to itself. The folder is written to a temporary sibling and renamed.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from greencc import __version__
from greencc.bundle import Bundle, load
from greencc.compiler.compile import compile_model
from greencc.compiler.cross_check import cross_check
from greencc.compiler.options import CompileOptions
from greencc.compiler.session import Session, Shared, available_target, open_cache
from greencc.core.engine import Target
from greencc.core.errors import GreenccError, InputError, UsageError
from greencc.core.files import atomic_folder
from greencc.core.progress import Progress, silent
from greencc.core.report import Figures
from greencc.core.report_matrix import CrossRow, MatrixReport, TargetFailure, TargetResult, TargetRow
from greencc.report.figures import BUSY, clean, energy_doubt
from greencc.report.json_out import stored
from greencc.report.matrix import dump_matrix, render_matrix_html, render_matrix_markdown
from greencc.report.verdict import judge
from greencc.targets import make_target

JSON = "matrix.json"
_FILES = {JSON: dump_matrix, "matrix.html": render_matrix_html, "matrix.md": render_matrix_markdown}


@dataclass(frozen=True)
class Matrix:
    """A folder with a bundle for every target that could be compiled for, and the report over all of them."""

    path: Path
    report: MatrixReport

    def bundle(self, target: str, *, trust: bool | str = False) -> Bundle:
        """Open the bundle of a target, as it was asked for.

        Raises:
            UsageError: It is none of the matrix, or has no bundle.
            InputError: As `greencc.bundle.load`.
        """
        for row in self.report.rows:
            if row.target == target and row.result is not None:
                return load(self.path / row.result.bundle, trust=trust)
        known = ", ".join(row.target for row in self.report.rows if row.result is not None)
        raise UsageError(f"{self.path} has no bundle for {target!r}", hint=f"it has: {known}")


def compile_matrix(
    model: Path,
    targets: Sequence[str],
    options: CompileOptions | None = None,
    *,
    output: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Matrix:
    """Compile `model` for several targets.

    Args:
        model: An ONNX file; external data lies beside it.
        targets: Specs, such as ``cpu`` and ``tvm-arm:preset=rpi5``.
        options: What to do for each of them; their own target is not read.
        output: The folder; default ``<model>.matrix`` in the current folder.
        force: Replace an existing matrix.
        progress: Shows how far long steps are.

    Returns:
        The matrix; its report's `exit_code` is that of the worst failure.

    Raises:
        UsageError: A target is unknown or given twice, or there is none.
        GreenccError: No target could be compiled for: the error of the one with the highest exit code.
    """
    options = options or CompileOptions()
    final = output or Path(f"{model.stem}.matrix")
    _check(targets, final, force)
    names = _bundle_names(model.stem, targets)
    shared = Shared(cache=open_cache(options))
    start = time.perf_counter()
    try:
        with atomic_folder(final, overwrite=force) as work:
            compiled = [
                _compiled(model, replace(options, target=spec), work / name, shared, progress)
                for spec, name in zip(targets, names, strict=True)
            ]
            errors = [each.error for each in compiled if each.error is not None]
            if len(errors) == len(compiled):
                raise max(errors, key=lambda error: int(error.exit_code))
            cross = [
                _crossed(each, model, replace(options, target=each.row.target), work, shared, progress)
                for each in compiled
                if each.bundle is not None
            ]
            found = MatrixReport(
                greencc=__version__,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                model=next(each.bundle.report.model for each in compiled if each.bundle is not None),
                asked=options.asked(),
                max_drop=options.max_drop,
                rows=tuple(each.row for each in compiled),
                cross=tuple(cross),
                seconds=time.perf_counter() - start,
            )
            report = stored(found, "matrix")
            for name, render in _FILES.items():
                (work / name).write_text(render(report), encoding="utf-8", newline="\n")
    except KeyboardInterrupt as interrupt:
        if options.cache:
            interrupt.add_note(
                "what was found for the targets so far is kept: the same command goes on from there"
            )
        raise
    return Matrix(final, report)


def _check(targets: Sequence[str], final: Path, force: bool) -> None:
    if not targets:
        raise UsageError("there is no target", hint="give one or more, such as cpu,jetson,tvm-arm")
    seen: dict[str, Target] = {}
    for spec in targets:
        # A mistyped target should not be found out after those before it were compiled.
        made = make_target(spec)
        if made in seen.values():
            raise UsageError(f"the target {spec} is given twice", hint="give each target once")
        seen[spec] = made
    if final.exists() and force and not (final / JSON).is_file():
        raise InputError(
            f"{final} exists and is no matrix, so --force does not replace it", hint="choose another name"
        )


def _bundle_names(stem: str, targets: Sequence[str]) -> list[str]:
    """A folder for each target, named after it."""
    found: list[str] = []
    for spec in targets:
        base = f"{stem}.{re.sub(r'[^A-Za-z0-9._-]+', '-', spec).strip('-')}"
        name, count = f"{base}.greencc", 1
        while name in found:
            count += 1
            name = f"{base}-{count}.greencc"
        found.append(name)
    return found


@dataclass(frozen=True)
class _Compiled:
    row: TargetRow
    bundle: Bundle | None = None
    error: GreenccError | None = None


def _compiled(
    model: Path, options: CompileOptions, folder: Path, shared: Shared, progress: Progress
) -> _Compiled:
    """A target's bundle, or why there is none."""
    assert shared.cache is not None
    ledger = shared.cache.ledger
    ledger.begin()
    start = time.perf_counter()
    result, failure, bundle, problem = None, None, None, None
    try:
        bundle = compile_model(model, options, output=folder, progress=progress, shared=shared)
        result = _result(bundle)
    except GreenccError as error:
        problem = error
        failure = TargetFailure(error.message, error.hint, int(error.exit_code))
    seconds = time.perf_counter() - start
    row = TargetRow(options.target, seconds, ledger.count, ledger.seconds, result, failure)
    return _Compiled(row, bundle, problem)


def _result(bundle: Bundle) -> TargetResult:
    report = bundle.report
    return TargetResult(
        bundle=bundle.path.name,
        verdict=judge(report).headline,
        precision=report.precision,
        runs_on=report.target,
        device=str(report.device.get("name", "")),
        baseline=_thin(report.baseline),
        artifact=_thin(report.artifact),
        ratio=report.ratio,
        accuracy=report.accuracy,
        met=report.budget.met,
        forms=report.candidates,
        build=report.build,
        warnings=report.warnings,
        latency_doubt="" if clean(report) else BUSY,
        energy_doubt=energy_doubt(report),
    )


def _thin(figures: Figures) -> Figures:
    """Without the single runs: they are in the bundle's own report."""
    return replace(figures, latency_ms=replace(figures.latency_ms, samples=()))


def _crossed(
    each: _Compiled, model: Path, options: CompileOptions, work: Path, shared: Shared, progress: Progress
) -> CrossRow:
    assert each.bundle is not None
    scratch = work / "scratch"
    scratch.mkdir()
    session = Session(options, available_target(options.target), scratch, progress, shared=shared)
    try:
        with each.bundle:
            return cross_check(session, each.bundle, each.row.target, model, shared.models[model])
    finally:
        session.close()
        shutil.rmtree(scratch, ignore_errors=True)

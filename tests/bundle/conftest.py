"""A bundle of a target for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from greencc import targets
from greencc.core.engine import Target
from greencc.core.files import atomic_folder

from .scale import ScaleTarget, write


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> ScaleTarget:
    made, real = ScaleTarget(threads=3), targets.make_target

    def make_target(spec: str) -> Target:
        # Commands ask for the targets of their own options as well.
        return made if spec == "scale:threads=3" else real(spec)

    monkeypatch.setattr("greencc.targets.make_target", make_target)
    monkeypatch.setattr("greencc.bundle.write.format_spec", lambda target: f"scale:threads={target.threads}")
    return made


@pytest.fixture
def path(tmp_path: Path, target: ScaleTarget) -> Path:
    final = tmp_path / "net.greencc"
    with atomic_folder(final) as work:
        write(work, target)
    target.opened.clear()
    return final

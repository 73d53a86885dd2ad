"""Folders are replaced whole or not at all, and what was there is never lost."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from greencc.core.errors import InputError
from greencc.core.files import atomic_folder


@pytest.fixture
def final(tmp_path: Path) -> Path:
    folder = tmp_path / "net.greencc"
    folder.mkdir()
    (folder / "file").write_text("old")
    return folder


@pytest.fixture
def failing_rename(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make every renaming of a path that ends like one of the keys raise."""

    def install(failures: dict[str, BaseException], meanwhile: Callable[[], object] = lambda: None) -> None:
        rename = Path.rename

        def fail(self: Path, target: Path) -> Path:
            for part, error in failures.items():
                if self.name.endswith(part) or self.parent.name.endswith(part):
                    meanwhile()
                    raise error
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail)

    return install


def replace_folder(final: Path) -> None:
    with atomic_folder(final, overwrite=True) as work:
        (work / "file").write_text("new")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replacing_leaves_nothing_else_behind(final: Path) -> None:
    replace_folder(final)
    assert (final / "file").read_text() == "new"
    assert names(final.parent) == ["net.greencc"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_when_the_new_one_cannot_be_moved_the_old_one_is_put_back(
    final: Path, failing_rename: Callable[..., None], error: BaseException
) -> None:
    failing_rename({".part": error})
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        replace_folder(final)
    assert (final / "file").read_text() == "old"
    assert names(final.parent) == ["net.greencc"]


def test_when_the_old_one_cannot_be_put_back_it_is_kept_and_named(
    final: Path, failing_rename: Callable[..., None]
) -> None:
    failing_rename({".part": OSError(errno.EIO, "broken"), ".old": OSError(errno.EACCES, "refused")})
    with pytest.raises(InputError, match=r"broken.*\(refused\) and is kept at (\S+)") as caught:
        replace_folder(final)
    kept = Path(caught.value.message.rpartition("kept at ")[2])
    assert (kept / "file").read_text() == "old"


def test_a_folder_that_someone_else_made_meanwhile_is_left_alone_and_the_old_one_kept(
    final: Path, failing_rename: Callable[..., None]
) -> None:
    def intrude() -> None:
        final.mkdir()
        (final / "file").write_text("someone else's")

    failing_rename({".part": OSError(errno.ENOTEMPTY, "not empty")}, intrude)
    with pytest.raises(InputError, match="is kept at") as caught:
        replace_folder(final)
    assert (final / "file").read_text() == "someone else's"
    assert (Path(caught.value.message.rpartition("kept at ")[2]) / "file").read_text() == "old"


def test_an_interrupt_after_the_new_one_is_in_place_loses_neither(
    final: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if self.name.endswith(".part"):
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(final)
    assert (final / "file").read_text() == "new"
    assert names(final.parent) == ["net.greencc"]


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    final = tmp_path / "net.greencc"
    final.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="already exists"), atomic_folder(final):
        pass
    replace_folder(final)
    assert not final.is_symlink()
    assert (final / "file").read_text() == "new"
    assert names(tmp_path) == ["net.greencc"]

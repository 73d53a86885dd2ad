"""Compiled code in a bundle runs only if the bundle is trusted, and only what was checked."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.bundle import load
from greencc.bundle.manifest import read_manifest
from greencc.bundle.trust import Trusted, forget, store_folder, trust, trusted
from greencc.cli.main import main
from greencc.core.errors import ExitCode, InputError, UnavailableError, UntrustedError, UsageError

from .scale import ScaleEngine, ScaleTarget

ONES = {"x": np.ones((1, 2), np.float32)}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artifacts are code, and there is a record for this test alone."""
    folder = tmp_path / "data" / "trusted"
    monkeypatch.setenv("GREENCC_TRUST_STORE", str(folder))
    monkeypatch.delenv("GREENCC_TRUST", raising=False)
    monkeypatch.setattr(ScaleTarget, "ships_code", True)
    return folder


@pytest.fixture
def foreign(store: Path, path: Path) -> Path:
    """A bundle that came from elsewhere."""
    shutil.rmtree(store)
    return path


def run(*arguments: object) -> None:
    main.main([str(argument) for argument in arguments], prog_name="greencc", standalone_mode=False)


def digest_of(path: Path) -> str:
    return read_manifest(path).sha256


def test_what_was_compiled_here_runs(path: Path, store: Path, target: ScaleTarget) -> None:
    with load(path) as bundle:
        np.testing.assert_array_equal(bundle.run(ONES)["y"], 2.5 * ONES["x"])
    (record,) = trusted()
    assert (record.sha256, record.name, record.target) == (digest_of(path), "net", "scale:threads=3")
    assert (record.device, record.why) == ("bench", "compiled here")
    (file,) = store.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.stat().st_mode) == 0o700


def test_code_is_no_graph(path: Path) -> None:
    with (
        load(path) as bundle,
        pytest.raises(InputError, match="compiled code for scale:threads=3, and no ONNX graph"),
    ):
        _ = bundle.graph
    for arguments in (
        ["estimate", path, "-d", "raspberry-pi-5"],
        ["inspect", path],
        ["inspect", path, "--profile"],
    ):
        with pytest.raises(InputError, match="no ONNX graph") as refused:
            run(*arguments)
        assert refused.value.hint is not None
        assert f"greencc report {path}" in refused.value.hint


def test_without_a_record_none_is_recommended(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, recommended in (("somewhere", True), ("", False)):
        monkeypatch.setenv("GREENCC_TRUST_STORE", folder and str(foreign.parent / folder))
        with load(foreign) as bundle, pytest.raises(UntrustedError) as refused:
            bundle.runnable()
        assert refused.value.hint is not None
        assert ("greencc trust" in refused.value.hint) is recommended
        assert "$GREENCC_TRUST or --trust with that SHA-256" in refused.value.hint


def test_targets_without_code_need_no_record(
    path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, target: ScaleTarget
) -> None:
    shutil.rmtree(store)
    monkeypatch.setattr(ScaleTarget, "ships_code", False)
    with load(path) as bundle:
        bundle.run(ONES)
        assert bundle.runnable() == bundle.artifact
    assert not store.exists()


def test_what_came_from_elsewhere_is_refused(foreign: Path, target: ScaleTarget) -> None:
    bundle = load(foreign)
    assert bundle.report.model.name == "net.onnx"
    with pytest.raises(
        UntrustedError, match=f"scale:threads=3 and is not trusted.*{digest_of(foreign)}"
    ) as info:
        bundle.engine()
    assert f"greencc trust {foreign}" in str(info.value.hint)
    assert info.value.exit_code is ExitCode.BAD_INPUT
    with pytest.raises(UntrustedError):
        bundle.runnable()
    assert target.opened == []


@pytest.mark.parametrize("how", ["argument", "digest", "digests", "variable", "record"])
def test_ways_to_trust(foreign: Path, target: ScaleTarget, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    digest = digest_of(foreign)
    given: bool | str = False
    match how:
        case "argument":
            given = True
        case "digest":
            given = digest.upper()
        case "digests":
            given = f"{'0' * 64}, {digest}"
        case "variable":
            monkeypatch.setenv("GREENCC_TRUST", f"{'0' * 64},{digest}")
        case "record":
            trust(read_manifest(foreign), "added by hand")
    with load(foreign, trust=given) as bundle:
        bundle.run(ONES)
    assert len(target.opened) == 1
    assert len(trusted()) == (how == "record")


def test_another_hash_is_no_trust(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENCC_TRUST", "1" * 64)
    with pytest.raises(UntrustedError):
        load(foreign, trust="0" * 64).engine()
    with pytest.raises(UsageError, match="'abc' is no SHA-256"):
        load(foreign, trust="abc")
    monkeypatch.setenv("GREENCC_TRUST", "yes")
    with pytest.raises(UsageError, match=r"\$GREENCC_TRUST: 'yes' is no SHA-256"):
        load(foreign).engine()


def test_a_moved_bundle_stays_trusted(path: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "other.greencc"
    shutil.copytree(path, moved)
    shutil.rmtree(path)
    with load(moved) as bundle:
        bundle.run(ONES)


def test_a_rewritten_manifest_is_not_what_was_trusted(path: Path, target: ScaleTarget) -> None:
    # Code and its hash were both replaced, so that they fit.
    (path / "artifact/model.scale").write_text("9.5")
    file = path / "manifest.json"
    data = json.loads(file.read_text())
    data["files"]["artifact/model.scale"]["sha256"] = hashlib.sha256(b"9.5").hexdigest()
    file.write_text(json.dumps(data))
    with pytest.raises(UntrustedError):
        load(path).engine()
    # The same content in another spelling is another manifest, too.
    assert target.opened == []


@pytest.mark.parametrize("when", ["before loading", "after loading"])
def test_what_was_tampered_with_does_not_run(path: Path, target: ScaleTarget, when: str) -> None:
    bundle = load(path) if when == "after loading" else None
    (path / "artifact/model.scale").write_text("9.5")
    with pytest.raises(InputError, match=r"model\.scale does not match its SHA-256"):
        (bundle or load(path)).engine()
    assert target.opened == []


@pytest.mark.parametrize("kind", ["link", "pipe", "longer"])
def test_only_plain_files_are_copied(
    path: Path, target: ScaleTarget, temporary: Callable[[], list[Path]], kind: str
) -> None:
    bundle = load(path)
    file = path / "artifact/model.scale"
    match kind:
        case "link":
            file.rename(path.parent / "same")
            file.symlink_to(path.parent / "same")
        case "pipe":
            file.unlink()
            os.mkfifo(file)
        case "longer":
            file.write_bytes(b"2.5" + bytes(1000))
    with pytest.raises(InputError, match=r"model\.scale"):
        bundle.engine()
    assert target.opened == []
    assert temporary() == []


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    """What lies in the folder for temporary files, one of this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return lambda: sorted(folder.iterdir())


def test_what_runs_is_a_private_copy(
    path: Path, temporary: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    open_it = ScaleTarget.open

    def watched(self: ScaleTarget, artifact: Path) -> Any:
        opened.append(artifact)
        return open_it(self, artifact)

    monkeypatch.setattr(ScaleTarget, "open", watched)
    bundle = load(path)
    bundle.run(ONES)
    (copy,) = temporary()
    assert opened == [copy / "artifact/model.scale"] == [bundle.runnable()]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert (copy / "artifact/weights.bin").read_bytes() == bytes(100)
    assert sorted(p.name for p in copy.iterdir()) == ["artifact"]
    # The bundle may change by now: what runs does not.
    (path / "artifact/weights.bin").write_bytes(b"\1" * 100)
    assert (copy / "artifact/weights.bin").read_bytes() == bytes(100)
    bundle.close()
    assert temporary() == []
    with pytest.raises(InputError, match=r"weights\.bin does not match"):
        bundle.run(ONES)
    assert temporary() == []


@pytest.mark.parametrize(("mode", "copied"), [(0o755, 0o700), (0o644, 0o600), (0o655, 0o600)])
def test_programs_stay_programs(path: Path, mode: int, copied: int) -> None:
    (path / "artifact/weights.bin").chmod(mode)
    with load(path) as bundle:
        copy = bundle.runnable().parent
        assert stat.S_IMODE((copy / "weights.bin").stat().st_mode) == copied


def test_a_bundle_that_is_dropped_leaves_nothing(path: Path, temporary: Callable[[], list[Path]]) -> None:
    bundle = load(path)
    bundle.runnable()
    assert len(temporary()) == 1
    del bundle
    gc.collect()
    assert temporary() == []


def test_where_nothing_may_run(
    path: Path, temporary: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    class NoExec:
        def __init__(self, where: Any) -> None:
            self.f_flag = real(where).f_flag | os.ST_NOEXEC

    monkeypatch.setattr(os, "statvfs", NoExec)
    with pytest.raises(UnavailableError, match="mounted with noexec"):
        load(path).engine()
    assert temporary() == []


# The record.


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: Path) -> None:
    monkeypatch.delenv("GREENCC_TRUST_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert store_folder() == tmp_path / "greencc/trusted"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert store_folder() == Path("/home/someone/.local/share/greencc/trusted")
    monkeypatch.setenv("GREENCC_TRUST_STORE", "")
    assert store_folder() is None
    assert trust(read_manifest(path), "a test") is None
    assert trusted() == []
    assert not forget("0" * 64)
    with pytest.raises(UntrustedError):
        load(path).engine()


def _damage(store: Path, change: Callable[[Path], Any]) -> None:
    (file,) = store.iterdir()
    change(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_text("{"),
        lambda file: file.write_text("[]"),
        lambda file: file.write_bytes(b"\xff"),
        lambda file: file.write_text("[" * 5000),
        lambda file: file.write_text(file.read_text().replace('"added"', '"when"')),
        lambda file: file.write_text(file.read_text().replace(file.stem, "0" * 64)),
        lambda file: file.write_text(file.read_text().replace('"net"', "3")),
    ],
)
def test_a_damaged_record(
    path: Path, store: Path, target: ScaleTarget, change: Callable[[Path], Any]
) -> None:
    _damage(store, change)
    with pytest.raises(InputError, match="a record of a trusted bundle, is damaged"):
        load(path).engine()
    with pytest.raises(InputError, match="is damaged"):
        trusted()
    assert target.opened == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.chmod(0o622), "can be written by others"),
        (lambda file: file.parent.chmod(0o770), "can be written by others"),
        (lambda file: file.parent.chmod(0o707), "can be written by others"),
        (
            lambda file: (file.rename(file.parent.parent / "x"), file.symlink_to(file.parent.parent / "x")),
            "is no",
        ),
        (lambda file: file.write_bytes(bytes(1 << 17)), "is no record"),
    ],
)
def test_a_record_that_others_may_have_written(
    path: Path, store: Path, target: ScaleTarget, change: Callable[[Path], Any], message: str
) -> None:
    _damage(store, change)
    with pytest.raises(InputError, match=message):
        load(path).engine()
    assert target.opened == []


@pytest.mark.parametrize("how", ["folder", "link"])
def test_a_record_below_a_folder_of_others(
    path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    if how == "folder":
        store.rename(shared / "trusted")
    else:
        (shared / "trusted").symlink_to(store)
    monkeypatch.setenv("GREENCC_TRUST_STORE", str(shared / "trusted"))
    load(path).engine()
    shared.chmod(0o777)
    with pytest.raises(InputError, match=r"shared, on the way to the record .* written by others") as caught:
        load(path).engine()
    assert f"chmod go-w {shared}" in (caught.value.hint or "")
    # Others may add to such a folder, and not rename what is ours.
    shared.chmod(0o1777)
    load(path).engine()


def test_folders_made_for_the_record_are_private(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENCC_TRUST_STORE", str(tmp_path / "a/b/c"))
    before = os.umask(0)
    try:
        trust(read_manifest(path), "a test")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/c")] == [0o700] * 3
    load(path).engine()


def test_a_record_of_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        # Root is whom everybody has to trust.
        load(path).close()
        store = store_folder()
        assert store is not None
        os.chown(store, 12345, -1)
    with pytest.raises(InputError, match="belongs to another user"):
        load(path).engine()


def test_a_record_that_cannot_be_written(foreign: Path, store: Path) -> None:
    store.write_text("a file")
    with pytest.raises(InputError):
        trust(read_manifest(foreign), "a test")
    with pytest.raises(InputError, match="is no folder"):
        load(foreign).engine()


# The command.


def test_trusting_by_hand(foreign: Path, capsys: pytest.CaptureFixture[str], store: Path) -> None:
    digest = digest_of(foreign)
    with pytest.raises(UsageError, match="nobody is there to be asked"):
        run("trust", foreign)
    shown = capsys.readouterr().out
    for part in (
        "net.onnx",
        "scale:threads=3, on bench",
        digest,
        "artifact/model.scale",
        "artifact/weights.bin",
    ):
        assert part in shown
    assert load(foreign).manifest.files["artifact/weights.bin"].sha256 in shown
    assert not store.exists()
    run("trust", foreign, "--yes")
    assert f"{foreign} is trusted on this machine" in capsys.readouterr().out
    with load(foreign) as bundle:
        bundle.run(ONES)
    run("trust", "--list")
    assert f"{digest}  net  scale:threads=3, made on bench  (added by hand" in capsys.readouterr().out
    run("trust", "--list", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(store)
    assert [Trusted(**row).sha256 for row in found["bundles"]] == [digest]
    run("trust", foreign, "--remove")
    assert "is trusted no longer" in capsys.readouterr().out
    with pytest.raises(UntrustedError):
        load(foreign).engine()
    with pytest.raises(UsageError, match="not among the trusted"):
        run("trust", digest, "--remove")
    run("trust", "--list")
    assert "no bundle is trusted yet" in capsys.readouterr().out


@pytest.mark.parametrize("answer", ["y", "n"])
def test_being_asked(foreign: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.confirm", lambda question: answer == "y")
    if answer == "y":
        run("trust", foreign)
    else:
        with pytest.raises(UntrustedError, match="nothing was recorded"):
            run("trust", foreign)
    assert len(trusted()) == (answer == "y")


def test_it_says_what_is_tampered_with(foreign: Path, store: Path) -> None:
    (foreign / "artifact/model.scale").write_text("9.5")
    with pytest.raises(InputError, match=r"model\.scale does not match"):
        run("trust", foreign, "--yes")
    assert not store.exists()


def test_there_may_be_nothing_to_trust(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ScaleTarget, "ships_code", False)
    run("trust", path, "--json")
    assert json.loads(capsys.readouterr().out)["state"] == "nothing to trust"


def test_no_record_is_wanted(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENCC_TRUST_STORE", "")
    with pytest.raises(UsageError, match="no record is kept"):
        run("trust", foreign, "--yes")


class OneOutput(ScaleEngine):
    def __init__(self, factor: float) -> None:
        super().__init__(factor)
        self.outputs = self.outputs[:1]


def test_commands_that_run_bundles(
    foreign: Path, tmp_path: Path, target: ScaleTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScaleTarget, "open", lambda self, artifact: OneOutput(float(artifact.read_text())))
    np.savez(tmp_path / "x.npz", x=np.ones((3, 2), np.float32))
    arguments = ("run", foreign, "-i", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    with pytest.raises(UntrustedError):
        run(*arguments)
    with pytest.raises(UntrustedError):
        run("measure", foreign, "--protocol", "quick")
    run("verify", foreign)
    run("report", foreign)
    assert not (tmp_path / "y.npz").exists()
    run(*arguments, "--trust", digest_of(foreign))
    with np.load(tmp_path / "y.npz") as found:
        np.testing.assert_array_equal(found["y"], np.full((3, 2), 2.5, np.float32))

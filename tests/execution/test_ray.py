"""What is of Ray alone; that it behaves like the others is in `test_executors`."""

from __future__ import annotations

import builtins
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.core.cache import Cache
from greencc.core.errors import InputError, UnavailableError
from greencc.execution import Blob, make_executor
from greencc.execution.ray_engine import RayPool, parse_address, written

from .conftest import HAS_RAY, NO_RAY, gather, squares

needs_ray = pytest.mark.skipif(not HAS_RAY, reason=NO_RAY)


def blob_of(folder: Path) -> Blob:
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"first")
    (folder / "b.bin").write_bytes(b"")
    return Blob.of(folder)


def test_content_is_checked_where_it_is_written(tmp_path: Path) -> None:
    blob = blob_of(tmp_path / "source")
    content = {name: np.fromfile(blob.folder / name, np.uint8) for name, _ in blob.files}
    root = tmp_path / "worker"
    root.mkdir()
    folder = written(blob, content, root)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.bin": b"first", "b.bin": b""}
    assert written(blob, {}, root) == folder, "it is there already"
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InputError, match=r"'a.bin' changed on its way"):
        written(blob, {**content, "a.bin": np.zeros(3, np.uint8)}, other)
    assert not (other / blob.digest).exists()


def test_a_blob_is_known_by_its_content(tmp_path: Path) -> None:
    first, second = blob_of(tmp_path / "one"), blob_of(tmp_path / "two")
    assert first.digest == second.digest
    (second.folder / "a.bin").write_bytes(b"other")
    assert Blob.of(second.folder).digest != first.digest


def test_addresses() -> None:
    assert parse_address("ray://head.example:10001") == ("head.example", 10001)
    assert parse_address("10.0.0.1:6379") == ("10.0.0.1", 6379)
    assert parse_address("ray://[::1]:10001") == ("::1", 10001)


@pytest.mark.parametrize("engine", ["ray", "ray://localhost:10001"])
def test_without_ray_the_extra_is_named(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true_import = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return true_import(name, *rest)

    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UnavailableError) as caught:
        make_executor(engine)
    assert (
        str(caught.value) == "the engine 'ray' needs Ray, which is not installed (pip install 'greencc[ray]')"
    )


@needs_ray
@pytest.mark.parametrize("prefix", ["ray://", ""])
def test_an_address_where_nothing_answers(prefix: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{prefix}127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            UnavailableError, match=f"no Ray cluster answers at {address}: Connection refused"
        ):
            make_executor(address)


@needs_ray
def test_a_ray_of_the_users_own_is_left_running(ray_executor: RayPool, tmp_path: Path) -> None:
    import ray

    ray_executor.dismiss()
    second = make_executor("ray", 1)
    assert gather(second, squares(2, tmp_path / "log"), Cache())[1].arrays is not None
    second.close()
    assert ray.is_initialized()


@needs_ray
def test_more_workers_than_processors_are_refused(ray_executor: RayPool) -> None:
    with pytest.raises(
        UnavailableError, match=r"the Ray that runs here has .* processors, and 4000 are wanted"
    ):
        make_executor("ray", 4000)
    assert ray_executor.workers == 2

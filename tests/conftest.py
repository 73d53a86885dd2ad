"""Settings all tests share."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from greencc.targets import backends
from greencc.targets._tensorrt import local

# Nothing is kept between tests, nor in the user's cache folder.
os.environ["GREENCC_CACHE"] = ""
# Nor are the user's own device profiles read.
os.environ["XDG_DATA_HOME"] = str(Path(__file__).parent / "no-such-folder")
# Nor is anything recorded as trusted there: it is in a folder that is removed in the end.
_TRUSTED = tempfile.mkdtemp(prefix="greencc-tests-trusted-")
os.environ["GREENCC_TRUST_STORE"] = _TRUSTED
os.environ.pop("GREENCC_TRUST", None)
# Nor are the user's devices and what is under way on them known.
os.environ["XDG_CONFIG_HOME"] = os.environ["XDG_STATE_HOME"] = _TRUSTED
os.environ.pop("GREENCC_DEVICES", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_TRUSTED, ignore_errors=True)


# The same examples on every machine and in every run: a failure in one place can be repeated in another.
settings.register_profile("greencc", derandomize=True, deadline=None, database=None)
settings.load_profile("greencc")


@pytest.fixture(scope="session", autouse=True)
def onnx_runtime_alone() -> Iterator[None]:
    """Compiles for `cpu` use ONNX Runtime alone: another run time takes seconds to try, one that compiles many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "OTHERS", ())
        yield


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This computer has no NVIDIA GPU, nor a driver for one, whatever it really has."""
    local.gpu_here.cache_clear()
    monkeypatch.setattr(local, "_ask_driver", lambda: {"missing": True})
    monkeypatch.setattr(local, "_on_the_bus", lambda: False)


_COMPETING = backends.OTHERS


@pytest.fixture
def competing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All run times that are installed compete, as they do for users: for tests of that choice."""
    monkeypatch.setattr(backends, "OTHERS", _COMPETING)

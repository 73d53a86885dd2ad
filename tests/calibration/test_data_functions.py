"""Samples from the user's own functions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from greencc.calibration import open_data
from greencc.core.data import TensorSpec
from greencc.core.errors import InputError, UsageError

F32 = np.dtype("float32")
SPEC = [TensorSpec("x", F32, ("N", 2))]
PAIR = [TensorSpec("a", F32, ("N", 2)), TensorSpec("b", F32, ("N", 2))]
NUMBERS = itertools.count()

HEAD = "import numpy as np\nimport itertools\ndef rows(n):\n    return np.arange(2.0 * n).reshape(n, 2)\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)

    def write(body: str) -> str:
        name = f"user_data_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(HEAD + body)
        return name

    return write


@pytest.mark.parametrize(
    "body",
    [
        "def f():\n    yield from rows(9)\n",
        "def f():\n    yield rows(9)\n",
        "def f():\n    return [{'x': rows(9)[:4]}, {'x': rows(9)[4:]}]\n",
        "class C:\n    def __iter__(self):\n        return iter(rows(9))\nf = C\n",
        "def f():\n    buffer = np.zeros(2)\n    for r in rows(9):\n        buffer[:] = r\n        yield buffer\n",
    ],
)
def test_samples_and_batches_in_every_form(module, body: str) -> None:  # type: ignore[no-untyped-def]
    source = open_data(f"{module(body)}:f", SPEC)
    assert source.count == 9
    for _ in range(2):
        batches = list(source.batches(4))
        assert [b.count for b in batches] == [4, 4, 1]
        got = np.concatenate([b.feeds["x"] for b in batches])
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, np.arange(18).reshape(9, 2))


def test_labels_and_digest(module, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    spec = module("def f():\n    for i, r in enumerate(rows(5)):\n        yield {'x': r}, i\n")
    source = open_data(f"{spec}:f", SPEC)
    assert source.has_labels
    (batch,) = source.batches(8)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2, 3, 4]
    np.savez(tmp_path / "d.npz", x=np.arange(10.0).reshape(5, 2), labels=np.arange(5))
    assert open_data(tmp_path / "d.npz", SPEC).digest() == source.digest()


def test_endless_functions_are_cut_by_the_limit(module) -> None:  # type: ignore[no-untyped-def]
    spec = module("def f():\n    for i in itertools.count():\n        yield np.full((4, 2), i)\n")
    source = open_data(f"{spec}:f", SPEC, limit=10)
    assert source.count == 10
    assert [b.count for b in source.batches(6)] == [6, 4]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f():\n    raise KeyError('no data')\n", r"failed at .*user_data_\d+.py:6: KeyError: 'no data'"),
        ("def f():\n    yield rows(1)[0]\n    helper()\n", r"failed at .*user_data_\d+.py:7: NameError"),
        ("def f():\n    yield np.zeros(3).reshape(2)\n", r"failed at .*user_data_\d+.py:6: ValueError"),
        ("def f():\n    raise SystemExit(3)\n", r"failed at .*user_data_\d+.py:6: SystemExit"),
        ("1 / 0\n", r"failed to import at .*user_data_\d+.py:5: ZeroDivisionError"),
        ("def f(:\n", r"failed to import at .*user_data_\d+.py:5: SyntaxError"),
        ("import no_such_package_xyz\n", r"failed to import at .*py:5: ModuleNotFoundError"),
        ("def f(): return 3\n", "returned int, not an iterable"),
        ("def f(): return {'x': rows(3)}\n", "returned dict, not an iterable"),
        ("def f(n): return rows(n)\n", "missing 1 required positional argument"),
        ("def f(): return []\n", "gave 0 samples"),
        ("def f(): return [{'y': rows(1)}]\n", "array 'y' is no input"),
        ("def f(): return [{}]\n", "no array for the model input 'x'"),
        ("def f(): return ['text']\n", "not an array of numbers"),
        ("def f(): return [[[1], [2, 3]]]\n", "is not an array"),
        ("def f(): return [np.zeros((2, 3))]\n", r"has shape \[2, 3\]"),
        ("def f(): return [rows(4), np.full(2, np.nan)]\n", "holds nan in sample 4"),
        ("def f(): return [(rows(2), [1])]\n", r"2 samples, but labels of shape \(1,\)"),
        ("def f(): return [(rows(2), ['a', 'b'])]\n", "not an array of numbers"),
        ("def f(): return [(rows(2), [1, 2]), rows(2)]\n", "labels for 2 of 4 samples"),
    ],
)
def test_bad_functions(module, body: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        open_data(f"{module(body)}:f", SPEC)


def test_unequal_inputs(module) -> None:  # type: ignore[no-untyped-def]
    spec = module("def f(): return [{'a': rows(2), 'b': rows(3)}]\ndef g(): return [rows(2)]\n")
    with pytest.raises(InputError, match="different lengths"):
        open_data(f"{spec}:f", PAIR)
    with pytest.raises(InputError, match="one array, the model has the inputs a, b"):
        open_data(f"{spec}:g", PAIR)


@pytest.mark.parametrize(
    ("body", "message"),
    [("def g(): pass\n", "no function 'f' in user_data_"), ("f = 3\n", "is a int, not a function")],
)
def test_missing_functions(module, body: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        open_data(f"{module(body)}:f", SPEC)


def test_missing_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no module 'no_such_module_xyz'"):
        open_data("no_such_module_xyz:f", SPEC)
    with pytest.raises(UsageError, match="no module 'no_such_module_xyz'"):
        open_data("no_such_module_xyz.inner:f", SPEC)


@pytest.mark.parametrize(
    "body",
    [
        "calls = itertools.chain([3], itertools.repeat(4))\ndef f():\n    return rows(next(calls))\n",
        "calls = itertools.chain([4], itertools.repeat(3))\ndef f():\n    return rows(next(calls))\n",
        "calls = itertools.count()\ndef f():\n    return rows(3) + next(calls)\n",
        "once = iter(rows(3))\ndef f():\n    return once\n",
    ],
)
def test_functions_that_do_not_repeat_themselves_are_refused(module, body: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="gave other samples than the first time"):
        open_data(f"{module(body)}:f", SPEC, role="evaluation").digest()


def test_the_import_path_is_left_alone(module) -> None:  # type: ignore[no-untyped-def]
    import sys

    before = list(sys.path)
    open_data(f"{module('def f(): return [rows(2)]')}:f", SPEC)
    assert sys.path == before

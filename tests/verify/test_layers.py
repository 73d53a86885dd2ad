"""Per-layer SQNR."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from greencc.core.errors import InputError
from greencc.verify import LayerPair, layer_errors
from greencc.verify.layers import CEILING_DB, FLOOR_DB


def test_errors_by_layer(fakes: Any) -> None:
    x = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    reference = fakes.engine(lambda x: {"a": x, "b": 2 * x, "c": x, "i": x.astype(np.int64), "s": x.sum()})
    artifact = fakes.engine(
        lambda x: {
            "qa": 1.1 * x,
            "b": 2 * x,
            "qc": x * np.float32(np.nan),
            "i": x.astype(np.int64),
            "s": x.sum(),
        }
    )
    layers = [
        LayerPair("conv", "Conv", "a", "qa"),
        LayerPair("same", "Relu", "b", "b"),
        LayerPair("nan", "Exp", "c", "qc"),
        LayerPair("int", "Cast", "i", "i"),
        LayerPair("scalar", "ReduceSum", "s", "s"),
        LayerPair("conv", "Conv", "a", "qa"),
    ]
    found = layer_errors(reference, artifact, layers, fakes.data(x), batches=2, size=8)
    assert [item.name for item in found] == ["conv", "same", "nan", "scalar", "conv"]
    assert found[0].sqnr_db == pytest.approx(20.0, abs=1e-3)
    assert [item.sqnr_db for item in found[1:4]] == [CEILING_DB, FLOOR_DB, CEILING_DB]
    assert found[4] == found[0]
    assert reference.sizes == [8, 8]


def test_no_layers_runs_nothing(fakes: Any) -> None:
    engine = fakes.engine(lambda x: {"a": x})
    assert layer_errors(engine, engine, [], fakes.data(np.ones((2, 2), np.float32))) == ()
    assert engine.sizes == []


def test_shapes_must_match(fakes: Any) -> None:
    reference, artifact = fakes.engine(lambda x: {"a": x}), fakes.engine(lambda x: {"a": x[:, :1]})
    with pytest.raises(InputError, match="layer 'conv' has shape"):
        layer_errors(
            reference,
            artifact,
            [LayerPair("conv", "Conv", "a", "a")],
            fakes.data(np.ones((2, 2), np.float32)),
        )

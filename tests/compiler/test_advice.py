"""What a refusal of passes that were asked for by name says they did, and proposes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from greencc.compiler.advice import output_errors, way_out
from greencc.core.pass_list import parse_passes
from greencc.core.passes import Pass
from greencc.core.recipe import options_of
from greencc.core.report import PassRecord
from greencc.passes import PASSES


def ran(text: str, *errors: float | None) -> tuple[tuple[Pass, ...], list[PassRecord]]:
    """Passes of a list, and the error each is recorded with; None: it changed nothing."""
    passes = parse_passes(text, PASSES)
    records = [
        PassRecord(step.name, options_of(step), 0 if error is None else 1, error, False, (), 0.1)
        for step, error in zip(passes, errors, strict=True)
    ]
    return passes, records


def test_each_lossy_pass_is_named_with_what_it_did() -> None:
    found = ran("eliminate-dead-code,prune:0.3,decompose:tucker,quantize", 0.0, 0.234, None, 0.0512)
    assert output_errors(*found) == (
        "largest change of an output, of its range: prune 0.23, decompose changed nothing, quantize-int8 0.051"
    )
    assert "such as prune:ratio=0.15;" in way_out(*found)
    assert "--max-drop" in way_out(*found)
    assert "greencc recover" in way_out(*found)


@pytest.mark.parametrize(
    ("text", "errors", "option"),
    [
        ("prune:0.3,drop-blocks:0.11", (0.1, 0.2), "drop-blocks:ratio=0.055"),
        ("prune:0.3,drop-blocks:0.11", (0.1, None), "prune:ratio=0.15"),
        ("prune:0.3,quantize", (0.1, 0.9), "prune:ratio=0.15"),
        ("decompose:energy=0.9", (0.1,), "decompose:energy=0.95"),
        ("decompose:rank=ratio:ratio=0.5", (0.1,), "decompose:rank=ratio:ratio=0.25"),
        ("decompose:rank=layer-ratio:ratio=0.5", (0.1,), "decompose:rank=layer-ratio:ratio=0.25"),
        ("sparsify:pattern=unstructured:sparsity=0.8", (0.1,), "sparsify:pattern=unstructured:sparsity=0.4"),
    ],
)
def test_the_pass_that_moved_the_outputs_most_is_to_do_half(text: str, errors: Any, option: str) -> None:
    assert f"such as {option};" in way_out(*ran(text, *errors))
    # It can be given back as it stands.
    assert parse_passes(option, PASSES)


@pytest.mark.parametrize(
    "text", ["quantize", "decompose:rank=evbmf", "decompose:ranks=c=svd\\:4", "sparsify"]
)
def test_without_a_number_to_halve_none_is_made_up(text: str) -> None:
    assert way_out(*ran(text, 0.1)).startswith("ask less of the passes; ")


def test_what_was_rolled_back_did_nothing_to_the_outputs() -> None:
    passes, (record,) = ran("prune:0.3", 0.1)
    assert output_errors(passes, [replace(record, rolled_back=True, changed=0)]) == ""
    assert output_errors(passes, [replace(record, error=None)]).endswith("prune not known")

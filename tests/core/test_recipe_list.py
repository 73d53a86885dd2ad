"""Passes in one line: what is read, what is written, and what is said of mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.errors import UsageError
from greencc.core.pass_list import ALIASES, format_option, format_passes, parse_passes, pass_names
from greencc.core.passes import Context, Outcome, Pass
from greencc.core.recipe import dump_recipe, parse_recipe
from greencc.passes import PASSES


class Pattern(Enum):
    TWO = "2:4"
    FREE = "free"


class Method(Enum):
    SVD = "svd"
    TUCKER = "tucker"


@dataclass(frozen=True)
class _Base(Pass):
    summary: ClassVar[str] = "for tests"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        return Outcome()


@dataclass(frozen=True)
class Prune(_Base):
    name: ClassVar[str] = "prune"
    primary: ClassVar[str | None] = "ratio"

    ratio: float = 0.3
    align: int = 0
    repair: bool = True
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UsageError(f"prune: ratio is {self.ratio:g}", hint="expected a number between 0 and 1")


@dataclass(frozen=True)
class Decompose(_Base):
    name: ClassVar[str] = "decompose"
    primary: ClassVar[str | None] = "method"

    method: Method = Method.SVD
    label: str = ""


@dataclass(frozen=True)
class Listed(_Base):
    name: ClassVar[str] = "listed"
    primary: ClassVar[str | None] = "items"

    items: tuple[str, ...] = ("a",)


@dataclass(frozen=True)
class Plain(_Base):
    name: ClassVar[str] = "quantize-int8"

    batch: int = 8


@dataclass(frozen=True)
class Sparse(_Base):
    name: ClassVar[str] = "sparse"
    primary: ClassVar[str | None] = "pattern"

    pattern: Pattern = Pattern.FREE
    block: int = 4


@dataclass(frozen=True)
class Bare(_Base):
    name: ClassVar[str] = "bare"


KNOWN = (Prune, Decompose, Listed, Plain, Sparse, Bare)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prune:ratio=0.3,decompose:tucker,quantize", (Prune(), Decompose(Method.TUCKER), Plain())),
        ("prune", (Prune(),)),
        ("prune:0.5:align=8:repair=false", (Prune(0.5, 8, False),)),
        ("prune:5e-1", (Prune(0.5),)),
        (" prune : 0.5 , bare ", (Prune(0.5), Bare())),
        ("bare,bare", (Bare(), Bare())),
        ("prune:exclude=/a/Conv+head", (Prune(exclude=("/a/Conv", "head")),)),
        (r"prune:exclude=a\:0\,b\+c\\", (Prune(exclude=("a:0,b+c\\",)),)),
        ("listed:items=", (Listed(()),)),
        ("listed:x+y", (Listed(("x", "y")),)),
        ("decompose:label=a=b", (Decompose(label="a=b"),)),
        (r"decompose:label=\ a b\ ", (Decompose(label=" a b "),)),
        ("quantize-int8:batch=2", (Plain(2),)),
        ("sparse:2:4", (Sparse(Pattern.TWO),)),
        ("sparse:pattern=2:4:block=8,bare", (Sparse(Pattern.TWO, 8), Bare())),
        (r"sparse:pattern=2\:4", (Sparse(Pattern.TWO),)),
    ],
)
def test_a_list_is_read(text: str, expected: tuple[Pass, ...]) -> None:
    assert parse_passes(text, KNOWN) == expected


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "the list is empty", "pass[:value]"),
        (" \n", "the list is empty", "pass[:value]"),
        ("prune,", "a pass has no name", "pass[:value]"),
        (",prune", "a pass has no name", "pass[:value]"),
        (":0.3", "a pass has no name", "pass[:value]"),
        ("nosuch", "unknown pass 'nosuch'", "known: bare, decompose"),
        ("prun", "unknown pass 'prun'", "did you mean 'prune'?"),
        ("quantise", "unknown pass 'quantise'", "did you mean 'quantize'?"),
        ("prune:ratio=2", "ratio is 2", "between 0 and 1"),
        ("prune:ratio=nan", "ratio is nan", "between 0 and 1"),
        ("prune:rato=0.3", "pass 'prune' has no option 'rato'", "did you mean 'ratio'?"),
        ("prune:name=x", "pass 'prune' has no option 'name'", "known: "),
        ("prune:=3", "pass 'prune' has no option ''", "known: "),
        ("prune:ratio=much", "prune.ratio is 'much'", "expected a number"),
        ("prune:ratio=", "prune.ratio is ''", "expected a number"),
        ("prune:align=0.5", "prune.align is '0.5'", "expected a whole number"),
        ("prune:repair=yes", "prune.repair is 'yes'", "write true or false"),
        ("prune:0.3:ratio=0.4", "prune is given ratio twice", "once"),
        ("prune:align=1:align=2", "prune is given align twice", "once"),
        ("prune:", "an option of prune is empty", "leave the ':' out"),
        ("prune:align=8:0.3", "'0.3' says no option of prune", "it is ratio"),
        ("decompose:tucker:svd", "'svd' says no option of decompose", "it is method"),
        ("decompose:tuker", "decompose.method is 'tuker'", "did you mean 'tucker'?"),
        ("quantize:mse", "quantize-int8 takes no value of its own", "its options: batch"),
        ("sparse:2:5", "'5' says no option of sparse", "it is pattern"),
        ("sparse:4:2", "'2' says no option of sparse", "it is pattern"),
        ("bare:x", "bare takes no value of its own", "it has no options"),
        ("prune\\", "ends in a backslash", ""),
    ],
)
def test_mistakes_are_told_in_a_line(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_passes(text, KNOWN)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert hint in (caught.value.hint or "")


_TEXT = st.text(st.sampled_from("ab,:=+\\ /é\t"), max_size=6)
_STEPS = st.one_of(
    st.builds(
        Prune,
        st.floats(0.001, 0.999),
        st.integers(-3, 10**12),
        st.booleans(),
        st.lists(_TEXT.filter(bool), max_size=3).map(tuple),
    ),
    st.builds(Decompose, st.sampled_from(Method), _TEXT),
    st.builds(Listed, st.lists(_TEXT.filter(bool), max_size=3).map(tuple)),
    st.builds(Plain, st.integers(-9, 9)),
    st.builds(Sparse, st.sampled_from(Pattern), st.integers(0, 9)),
    st.just(Bare()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_STEPS, min_size=1, max_size=4).map(tuple))
def test_what_is_written_is_read_again(steps: tuple[Pass, ...]) -> None:
    text = format_passes(steps)
    assert parse_passes(text, KNOWN) == steps
    assert pass_names(text) == tuple(step.name for step in steps)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("prune:ratio=0.3,\\+ d"), max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but a UsageError leaves the parser, and a list that is read survives being written."""
    pass_names(text)
    try:
        steps = parse_passes(text, KNOWN)
    except UsageError:
        return
    assert parse_passes(format_passes(steps), KNOWN) == steps


def test_a_list_and_a_recipe_say_the_same() -> None:
    steps = parse_passes("prune:0.5:exclude=a+b,decompose:tucker,quantize:batch=2", KNOWN)
    assert parse_recipe(dump_recipe(steps), KNOWN) == steps
    assert format_passes(steps) == "prune:0.5:exclude=a+b,decompose:tucker,quantize-int8:batch=2"


def test_options_at_their_defaults_are_left_out() -> None:
    assert format_passes((Prune(), Bare())) == "prune,bare"
    assert [format_option(value) for value in (True, 3, 0.5, Method.SVD, ("a", "b:c"))] == [
        "true", "3", "0.5", "svd", "a+b\\:c",
    ]  # fmt: skip


def test_the_passes_of_greencc_can_be_listed() -> None:
    """Every pass is known by its name alone, aliases lead to passes, and primary options exist."""
    assert parse_passes(",".join(kind.name for kind in PASSES), PASSES) == tuple(kind() for kind in PASSES)
    names = {kind.name for kind in PASSES}
    assert set(ALIASES.values()) <= names
    assert not set(ALIASES) & names
    for kind in PASSES:
        assert kind.primary is None or kind.primary in kind.__dataclass_fields__

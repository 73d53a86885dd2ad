"""Energy by layer as a flame map: scopes of the nodes' names above, layers below, widths by energy.

Both variants have the same order of layers. The layers of each fill the width, so that a small artifact is as readable
as a large baseline; the bars above them are on a common scale, and show what lies between the layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from markupsafe import Markup

from greencc.core.report import REST, Interval, LayerEnergies, LayerEnergy, LayerShare
from greencc.report.energy import ATTRIBUTED, grade_text, heaviest, share_interval, sum_shares, word
from greencc.report.figures import joules_interval, printable, share, shorten
from greencc.report.svg import figure, percent, tag

_ROW = 24
_BAR = 10
_HEAD = 46
_GAP = 26
# Levels that are drawn; deeper scopes become part of the layer's label.
_LEVELS = 4
# Cells narrower than this share of the width cannot be seen or pointed at.
_NARROWEST = 0.001
# Pixels that labels are cut for, by the class that shows them; SVG cannot measure text.
_WIDTHS = (("wide", 640), ("narrow", 290))
_ADVANCE = 6.6
_PADDING = 8
_SHORTEST_LABEL = 4
_BOTH_ENDS = 14
_RUNTIME = "by the runtime"


@dataclass
class _Scope:
    """A part of a name and what is inside; `row` where a layer ends here."""

    name: str
    row: LayerEnergy | None = None
    children: dict[str, _Scope] = field(default_factory=dict)

    def rows(self) -> Iterator[LayerEnergy]:
        if self.row is not None:
            yield self.row
        for child in self.children.values():
            yield from child.rows()


@dataclass(frozen=True)
class _Panel:
    """One variant: its name in the data, its CSS class, and what stretches its layers to the whole width."""

    side: str
    css: str
    zoom: float

    def share(self, row: LayerEnergy) -> float:
        return _share(row, self.side)


def flame_map(found: LayerEnergies) -> Markup:
    """The map of both variants, under one another."""
    tree = _collapsed(_tree(found), level=0)
    rest = next((row for row in found.rows if row.name == REST), None)
    height = _HEAD + _depth(tree) * _ROW + _GAP
    end = max(found.baseline_mj.value, found.artifact_mj.value)
    parts: list[Markup] = []
    for index, (side, label, total) in enumerate(
        (("baseline", "Baseline", found.baseline_mj), ("artifact", "Artifact", found.artifact_mj))
    ):
        css, top = side[0], index * height
        layers = 1.0 - (0.0 if rest is None else _share(rest, side))
        bar = {"y": top + 24, "height": _BAR, "rx": "1.5"}
        parts += [
            tag("text", label, x="0", y=top + 14, class_=f"label {css}"),
            tag("text", _total(total, found), x="100%", y=top + 14, text_anchor="end", class_="value total"),
            tag("rect", x="0", width="100%", class_="groove", **bar),
            tag("rect", x="0", width=percent(layers * total.value / end), class_=f"area {css}", **bar),
        ]
        if rest is not None and _share(rest, side) >= _NARROWEST:
            place = {
                "x": percent(layers * total.value / end),
                "width": percent(_share(rest, side) * total.value / end),
            }
            parts.append(
                tag(
                    "rect",
                    tag("title", _title(_Scope(REST, rest), side)),
                    class_=f"rest {css}",
                    **bar,
                    **place,
                )
            )
        if layers >= _NARROWEST:
            parts += _cells(tree, _Panel(side, css, 1.0 / layers), 0.0, top + _HEAD)
    return figure("Energy by layer", _description(found), 2 * height - _GAP, parts)


def _total(total: Interval, found: LayerEnergies) -> str:
    return f"{joules_interval(total)}, {word(found)} ({found.grade})"


def _description(found: LayerEnergies) -> str:
    top = [
        f"{printable(row.name)} {share(_share(row, 'baseline'), 2)} of the baseline and "
        f"{share(_share(row, 'artifact'), 2)} of the artifact"
        for row in heaviest(found, 3)
    ]
    return f"{ATTRIBUTED.capitalize()}; the totals are {grade_text(found)}. Largest: {'; '.join(top)}."


def _share(row: LayerEnergy, side: str) -> float:
    part: LayerShare | None = getattr(row, side)
    return 0.0 if part is None else part.share.value


def _tree(found: LayerEnergies) -> _Scope:
    root = _Scope("")
    for row in found.rows:
        if row.name == REST:
            continue
        scope = root
        for part in _path(row):
            scope = scope.children.setdefault(part, _Scope(part))
        scope.row = row
    return root


def _path(row: LayerEnergy) -> list[str]:
    if row.name.endswith(f", {_RUNTIME})"):
        return [_RUNTIME, row.name[1 : row.name.rfind(",")]]
    return [part for part in row.name.split("/") if part] or [row.name]


def _collapsed(scope: _Scope, level: int) -> _Scope:
    """Chains of scopes with a single child become one; scopes below the last level become layers side by side."""
    children: dict[str, _Scope] = {}
    for key, child in scope.children.items():
        name = child.name
        while len(child.children) == 1 and child.row is None:
            (child,) = child.children.values()
            name = f"{name}/{child.name}"
        if level + 1 < _LEVELS:
            children[key] = _collapsed(_Scope(name, child.row, child.children), level + 1)
        else:
            for label, row in _leaves(child, name):
                children[row.name] = _Scope(label, row)
    if scope.row is not None and children:
        # A layer whose name is the scope of others.
        return _Scope(scope.name, None, {"": _Scope(scope.name, scope.row), **children})
    return _Scope(scope.name, scope.row, children)


def _leaves(scope: _Scope, name: str) -> Iterator[tuple[str, LayerEnergy]]:
    if scope.row is not None:
        yield name, scope.row
    for child in scope.children.values():
        yield from _leaves(child, f"{name}/{child.name}")


def _depth(scope: _Scope) -> int:
    return max((1 + _depth(child) for child in scope.children.values()), default=0)


def _cells(scope: _Scope, panel: _Panel, left: float, top: int) -> Iterator[Markup]:
    common = _common_prefix(scope)
    for child in scope.children.values():
        width = panel.zoom * sum(panel.share(row) for row in child.rows())
        if width >= _NARROWEST:
            yield _cell(child, child.name.removeprefix(common), panel, (left, width), top)
            yield from _cells(child, panel, left, top + _ROW)
        left += width


def _common_prefix(scope: _Scope) -> str:
    """What the names of all layers side by side begin with, up to an underscore: it tells them nothing apart."""
    names = [child.name for child in scope.children.values() if not child.name.startswith(("(", _RUNTIME))]
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)
    same = next((index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind("_", 0, same) + 1]


def _cell(scope: _Scope, name: str, panel: _Panel, span: tuple[float, float], y: int) -> Markup:
    left, width = span
    label = printable(name)
    texts = []
    for shown, pixels in _WIDTHS:
        characters = int((width * pixels - _PADDING) / _ADVANCE)
        if characters >= min(_SHORTEST_LABEL, len(label)):
            texts.append(tag("text", _cut(label, characters), x="5", y="16", class_=f"cell {shown}"))
    kind = "scope" if scope.children else "layer"
    return tag(
        "svg",
        tag("title", _title(scope, panel.side)),
        tag("rect", x="0", y="0", width="100%", height=_ROW - 1, class_=f"{kind} {panel.css}"),
        *texts,
        x=percent(left),
        y=y,
        width=percent(width),
        height=_ROW - 1,
        overflow="hidden",
    )


def _cut(label: str, characters: int) -> str:
    """Of a long label both ends tell; of a few letters only the first are readable."""
    if characters >= _BOTH_ENDS or len(label) <= characters:
        return shorten(label, characters)
    return f"{label[: characters - 1]}\N{HORIZONTAL ELLIPSIS}"


def _title(scope: _Scope, side: str) -> str:
    rows = [row for row in ([scope.row] if scope.row else scope.rows()) if getattr(row, side) is not None]
    part = sum_shares([getattr(row, side) for row in rows])
    # A cell is as wide as its share: there is one.
    assert part is not None
    name = printable(scope.name if scope.row is None else scope.row.name)
    if scope.row is not None and scope.row.op_type:
        name += f" ({printable(scope.row.op_type)})"
    counted = f", {len(rows)} layers" if scope.row is None else ""
    return f"{name}: {joules_interval(part.mj)}, {share_interval(part)} of the {side}{counted}, {ATTRIBUTED}"

"""Table and plot of how far layers are from the roofline."""

from __future__ import annotations

from benchmarks.backends_plots import Dot, roofline_svg
from benchmarks.backends_tools import BACKENDS, INT8, ITEMS, PRECISIONS, TVM
from benchmarks.peaks import Peaks
from benchmarks.render_backends import REASON, Document, Row, colour_of, drawn, folded, item_of
from benchmarks.tables import NONE, markdown_table, number, percent

SLOWEST = 6
"""Layers that the table of a model's artifact shows."""


def roofline_table(document: Document) -> str:
    """TVM's slowest layers by their least time, artifact by artifact, and all layers of all backends as a plot."""
    parts = [_roofline_summary(document)]
    for case in document["cases"]:
        rows = []
        for row in _profiled(document, case):
            if row["backend"] != TVM:
                continue
            for layer in row["layers"][:SLOWEST]:
                rows.append(
                    [f"{item_of(row).label}: {layer['name']} ({layer['op_type']})", *_layer_cells(layer, row)]
                )
        if rows:
            header = [
                "artifact: layer",
                "µs",
                "share",
                "MMAC",
                "MB moved",
                "least µs",
                "bound by",
                "time / least",
            ]
            parts.append(
                folded(f"{case}: the slowest layers of TVM's artifacts", markdown_table(header, rows))
            )
    return "\n\n".join([*parts, *_roofline_picture(document)])


def _roofline_summary(document: Document) -> str:
    """Per artifact: time of all layers with a bound by the sum of their bounds, and the share of those layers."""
    rows = []
    for case, note in document["cases"].items():
        if note.get("error"):
            rows.append([case, f"failed: {note['error'][:REASON]}", *[NONE] * (len(ITEMS) - 1)])
            continue
        cells = []
        for item in ITEMS:
            row = next((row for row in _profiled(document, case) if row["key"] == item.key), None)
            cells.append(NONE if row is None else _total_cell(row))
        rows.append([case, *cells])
    return markdown_table(["time / least time (share of the time)", *(item.label for item in ITEMS)], rows)


def _total_cell(row: Row) -> str:
    bounded = [layer for layer in row["layers"] if layer["bound_us"]]
    if not bounded:
        return NONE
    taken = sum(layer["microseconds"] for layer in bounded)
    return (
        f"{taken / sum(layer['bound_us'] for layer in bounded):.2f} ({percent(taken / row['total_us'], 0)})"
    )


def _layer_cells(layer: Row, row: Row) -> list[str]:
    return [
        f"{layer['microseconds']:.1f}",
        percent(layer["microseconds"] / row["total_us"], 1),
        NONE if layer["macs"] is None else f"{layer['macs'] / 1e6:.2f}",
        NONE if layer["bytes"] is None else f"{layer['bytes'] / 1e6:.3f}",
        number(layer["bound_us"], ".2f"),
        layer["limit"] or NONE,
        number(layer["distance"], ".2f"),
    ]


def _roofline_picture(document: Document) -> list[str]:
    """Layers of all artifacts of all models under the roofs of the last run."""
    notes = [note for note in document["cases"].values() if note.get("peaks")]
    dots: dict[str, list[Dot]] = {precision: [] for precision in PRECISIONS}
    for case in document["cases"]:
        for row in _profiled(document, case):
            dots[row["precision"]] += _dots(row)
    if not notes or not any(dots.values()):
        return []
    peaks = Peaks.of(notes[-1]["peaks"])
    panels = [(f"{name.upper()} layers", name == INT8, dots[name]) for name in PRECISIONS if dots[name]]
    title = "Layers under the roofline of one core"
    picture = roofline_svg(title, peaks, panels)
    integers = (
        "none measured" if peaks.int8_ops is None else f"{peaks.int8_ops / 1e9:.0f} Gop/s ({peaks.int8})"
    )
    text = (
        f"Peaks of one core, measured: FP32 {peaks.float_ops / 1e9:.0f} GFLOP/s in {peaks.width_bits} bits, "
        f"INT8 {integers}; reading {', '.join(_rates(peaks))}."
    )
    return [text, drawn("backends-roofline.svg", picture, title)]


def _rates(peaks: Peaks) -> list[str]:
    sizes = [peaks.bandwidth[0], peaks.bandwidth[len(peaks.bandwidth) // 2], peaks.bandwidth[-1]]
    return [f"{rate / 1e9:.0f} GB/s from {size >> 10:,} KiB" for size, rate in sizes]


def _dots(row: Row) -> list[Dot]:
    item = item_of(row)
    return [
        Dot(
            f"{BACKENDS[item.backend]}{', tuned' if item.tuned else ''}",
            colour_of(item),
            f"{row['case']}, {item.label}: {layer['name']}",
            2 * layer["macs"] / layer["bytes"],
            2e6 * layer["macs"] / layer["microseconds"],
            layer["microseconds"] / row["total_us"],
        )
        for layer in row["layers"]
        if layer["macs"]
        and layer["bytes"]
        and layer["microseconds"]
        and layer["integers"] == (item.precision == INT8)
    ]


def _profiled(document: Document, case: str) -> list[Row]:
    return [row for row in document["rows"] if row["case"] == case and row["error"] is None]

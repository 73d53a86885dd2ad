"""The picture and the simulation of the scaling benchmark; the tables themselves take minutes."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks.execution_scaling import DEVICES, SAMPLES, TASKS, plot, simulation_rows


def test_simulated_rows_are_drawn_beside_measured_ones() -> None:
    rows = simulation_rows()
    assert {row["devices"] for row in rows} == set(DEVICES)
    assert all(row["failed"] == 0 and row["tasks"] == TASKS for row in rows)
    assert all(row["makespan"] >= row["bound"] for row in rows if not row["lost_share"])
    tables = [
        {
            "kind": "table",
            "engine": name,
            "groups": groups,
            "samples": samples,
            "seconds": groups * samples / 100,
        }
        for name in ("local, 1", "ray, 2")
        for groups in (3, 12)
        for samples in SAMPLES
    ]
    root = ElementTree.fromstring(plot([*tables, *rows], "a <model>"))
    texts = ["".join(item.itertext()) for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "ray, 2" in texts
    assert any("a <model>" in text for text in texts)
    assert any(text == "5 % lost" for text in texts)

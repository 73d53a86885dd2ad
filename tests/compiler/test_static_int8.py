"""Accuracy-aware INT8 on a model that plain INT8 ruins; real runtime, real data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from greencc.compiler import static
from greencc.compiler.costs import GroupCost, group_costs, layer_choice
from greencc.compiler.groups import Group, quantized_groups
from greencc.compiler.options import Precision, QuantizedFormat
from greencc.compiler.session import Deadline, Session
from greencc.compiler.static import static_int8
from greencc.compiler.tables import SMALL_SLICE, error_table
from greencc.compiler.variants import Variant, variants
from greencc.core.cache import Cache
from greencc.core.report import Interval
from greencc.passes.quantize_int8 import QuantizeInt8

from .conftest import Bench


def first_variant(bench: Bench) -> Variant:
    model = bench.builder.cleaned().model
    return next(variants(bench.session.options.effort, bench.builder.context.capabilities, model))


def test_groups_take_the_arithmetic_after_a_weighted_node_along(bench: Bench) -> None:
    form = bench.builder.static("int8", (), QuantizeInt8())
    groups = quantized_groups(form.qdq)
    assert [group.name for group in groups] == ["body0", "body1", "body2", "body3", "box_head", "score_head"]
    assert groups[-1].nodes[:2] == ("score_head", "join")
    names = [name for group in groups for name in group.nodes]
    assert len(set(names)) == len(names)
    assert "flatten" not in names


def test_leaving_a_group_out_leaves_its_nodes_in_float(bench: Bench) -> None:
    groups = quantized_groups(bench.builder.static("int8", (), QuantizeInt8()).qdq)
    for group in groups:
        form = bench.builder.static("part", (), QuantizeInt8(exclude=group.nodes))
        left = {name for other in quantized_groups(form.qdq) for name in other.nodes}
        assert not left & set(group.nodes)


def test_the_head_is_found_and_kept_in_float(bench: Bench, steady: dict[str, float]) -> None:
    assert not steady
    found = static_int8(bench.session, bench.builder, bench.baseline, bench.splits, bench.feeds)
    full = next(item for item in found.all if item.form.name == "int8-minmax")
    assert full.loss is not None
    assert full.loss > 0.2, "the model was made to be ruined"
    assert found.best.loss is not None
    assert found.best.loss <= 0.05
    quantized = {group.name for group in quantized_groups(found.best.form.qdq)}
    assert quantized >= {"body0", "body1", "body2", "body3"}, "the body is not to blame"
    assert "stay in float" in found.best.reason
    kept = {choice.name for choice in found.choices if choice.precision == "float"}
    assert kept & {"box_head", "score_head"}
    findings = [finding.message for record in found.best.form.records for finding in record.findings]
    assert any("costs more accuracy than it saves energy" in message for message in findings)
    for item in found.all:
        item.engine.close()


def test_no_time_no_search(bench: Bench) -> None:
    bench.session.options = replace(bench.session.options, search_seconds=0)
    found = static_int8(bench.session, bench.builder, bench.baseline, bench.splits, bench.feeds)
    assert found.best.form.name != "mixed"
    assert any("--search-time" in warning for warning in bench.session.warnings)
    for item in found.all:
        item.engine.close()


def test_the_error_table_blames_the_join_and_is_not_measured_twice(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.session.cache = Cache(tmp_path / "cache")
    variant = first_variant(bench)
    groups = quantized_groups(bench.builder.static("int8", (), variant.plain).qdq)
    arguments = (bench.session, bench.builder, bench.baseline, bench.splits, variant, groups)
    rows = error_table(*arguments, Deadline(60))
    assert rows is not None
    worst = max(rows, key=lambda row: row.error)
    assert worst.group.name in ("score_head", "box_head")
    assert rows[0].samples >= SMALL_SLICE

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(type(bench.session.target), "calibration_engine", refuse)
    assert error_table(*arguments, Deadline(60)) == rows


def test_a_table_that_cannot_end_in_time_is_none(bench: Bench) -> None:
    variant = first_variant(bench)
    groups = quantized_groups(bench.builder.static("int8", (), variant.plain).qdq)
    assert (
        error_table(bench.session, bench.builder, bench.baseline, bench.splits, variant, groups, Deadline(0))
        is None
    )


def test_costs_are_charged_to_the_groups_they_belong_to(bench: Bench) -> None:
    form = bench.builder.static("int8", (), QuantizeInt8())
    cleaned = bench.builder.cleaned()
    groups = quantized_groups(form.qdq)
    costs = group_costs(
        bench.session, groups, (cleaned.model, cleaned.artifact), (form.qdq, form.artifact), bench.feeds[0]
    )
    assert set(costs) == {group.name for group in groups}
    assert sum(cost.float_us for cost in costs.values()) > 0
    assert all(cost.int8_us > 0 for name, cost in costs.items() if name.startswith("body"))
    assert all(cost.float_mj > 0 and cost.int8_mj > 0 for cost in costs.values())


def test_times_within_their_noise_decide_nothing() -> None:
    assert not GroupCost(100.0, 104.0, 1.0, 0.9).slower
    assert not GroupCost(1.0, 2.0, 1.0, 0.9).slower
    assert GroupCost(100.0, 120.0, 1.0, 1.1).slower
    assert not GroupCost(120.0, 100.0, 1.0, 0.9).slower


def test_what_is_slower_goes_back_to_float_when_the_whole_gets_faster(
    bench: Bench, steady: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profile says that `body1` is slower as INT8, and the comparison that leaving it in float helps."""
    bench.session.options = replace(bench.session.options, max_drop=0.99, precision=Precision.MIXED)
    steady["body1"] = 1000.0

    def compare(engines: list[object], *_: object, **__: object) -> object:
        from greencc.core.report import Interval
        from greencc.measure.latency import QuickComparison

        assert len(engines) == 2
        return QuickComparison((2.0, 1.0), (Interval(2.0, 1.9, 2.1),), (1,), 1, (), True)

    monkeypatch.setattr(static, "quick_compare", compare)
    found = static_int8(bench.session, bench.builder, bench.baseline, bench.splits, bench.feeds)
    assert "body1" not in {group.name for group in quantized_groups(found.best.form.qdq)}
    (choice,) = (choice for choice in found.choices if choice.name == "body1")
    assert choice.precision == "float"
    assert "measured slower as INT8" in choice.reason
    for item in found.all:
        item.engine.close()


def test_int8_asked_for_by_name_stays_int8_with_a_word_about_what_is_slower(
    bench: Bench, steady: dict[str, float]
) -> None:
    bench.session.options = replace(bench.session.options, max_drop=0.99, search_seconds=0)
    steady["body1"] = 1000.0
    found = static_int8(bench.session, bench.builder, bench.baseline, bench.splits, bench.feeds)
    assert "body1" in {group.name for group in quantized_groups(found.best.form.qdq)}
    assert any("measured slower as INT8" in warning for warning in bench.session.warnings)
    for item in found.all:
        item.engine.close()


def test_a_cached_profile_decides_a_second_compile(bench: Bench, tmp_path: Path) -> None:
    from greencc.compiler.costs import profiled

    bench.session.cache = Cache(tmp_path / "cache")
    cleaned = bench.builder.cleaned()
    first = profiled(bench.session, cleaned.artifact, bench.feeds[0])
    again = Session(bench.session.options, bench.session.target, bench.session.scratch)
    again.cache = Cache(tmp_path / "cache")
    assert profiled(again, cleaned.artifact, bench.feeds[0]) == first


def test_safer_forms_have_ever_less_error(bench: Bench, steady: dict[str, float]) -> None:
    assert not steady
    bench.session.options = replace(bench.session.options, max_drop=0.99)
    found = static_int8(bench.session, bench.builder, bench.baseline, bench.splits, bench.feeds)
    forms = [found.best, *(item.best for item in found.safer)]
    assert len(forms) >= 2, "the body may stay INT8 while the head goes back to float"
    errors = [item.sqnr for item in forms]
    assert None not in errors
    assert all(later >= errors[0] + 6.0 for later in errors[1:])  # type: ignore[operator]
    assert all(item.form.precision is Precision.MIXED for item in forms[1:])
    assert all(quantized_groups(item.form.qdq) for item in forms[1:]), "something is still INT8"
    for item in (*found.all, *forms[1:]):
        item.engine.close()


def test_what_a_layer_saves_is_told_with_range_grade_and_boundary() -> None:
    cost = GroupCost(100.0, 60.0, 1.0, 0.7, Interval(0.3, 0.1, 0.9))
    told = layer_choice(Group("conv", "Conv", ("conv", "relu")), cost, "", 0.01)
    assert (told.precision, told.reason, told.saved_us) == ("int8", "", 40.0)
    assert told.saved_mj == pytest.approx(0.3)
    assert (told.saved_mj_low, told.saved_mj_high, told.grade) == (0.1, 0.9, "D")
    assert told.boundary is not None
    assert "estimated" in told.boundary
    kept = layer_choice(Group("conv", "Conv", ("conv",)), cost, "measured slower", None)
    assert (kept.precision, kept.reason, kept.error) == ("float", "measured slower", None)


def test_the_best_way_to_quantize_is_recalled_for_the_same_limit_alone(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.session.cache = Cache(tmp_path / "cache")
    context = (bench.session, bench.builder, bench.baseline, bench.splits, "context")

    def recalled(*, over: bool = False) -> bool:
        best, _, others = static.recalled_variant(*context, lambda: over)
        for item in (best, *others):
            item.engine.close()
        return "as an earlier compile found" in best.reason

    assert not recalled(over=True)
    assert not recalled(), "what was found in too little time is not kept"
    assert recalled()
    assert recalled(over=True)
    options = bench.session.options
    bench.session.options = replace(options, max_drop=0.99)
    assert not recalled()
    # The first variant is good enough: nothing was left out when the time was over.
    assert recalled(over=True)
    bench.session.options = replace(options, format=QuantizedFormat.QOPERATOR)
    assert not recalled()
    (tmp_path / "judged_by_me.py").write_text(
        "def score(outputs, labels, feeds):\n    return outputs['classes'].max(axis=1) > 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    bench.session.options = replace(options, metric="judged_by_me:score")
    assert [recalled(), recalled()] == [False, False], "the user's code may change"

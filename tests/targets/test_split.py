"""Several targets in one text, whose options have commas, too."""

from __future__ import annotations

import pytest

from greencc.core.errors import UsageError
from greencc.targets import make_target, split_specs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu", ["cpu"]),
        ("cpu:threads=1,optimization=extended", ["cpu:threads=1,optimization=extended"]),
        ("cpu,openvino , tvm-arm", ["cpu", "openvino", "tvm-arm"]),
        ("cpu:threads=1,tvm-arm:preset=rpi5,openvino", ["cpu:threads=1", "tvm-arm:preset=rpi5", "openvino"]),
        (
            "jetson:preset=jetson-nano,jetpack=4.6,dla=true,cpu:threads=2,optimization=basic",
            ["jetson:preset=jetson-nano,jetpack=4.6,dla=true", "cpu:threads=2,optimization=basic"],
        ),
        ("jetson:jetson-nano,tensorrt:10.3,gpu=sm87", ["jetson:jetson-nano", "tensorrt:10.3,gpu=sm87"]),
        ("a:device=x,b=ssh://user@orin:22,c", ["a:device=x,b=ssh://user@orin:22", "c"]),
    ],
)
def test_commas_between_targets_and_between_options(text: str, expected: list[str]) -> None:
    assert list(split_specs(text)) == expected


def test_an_unknown_target_is_named_alone() -> None:
    with pytest.raises(UsageError, match="unknown target 'gpu'"):
        [make_target(spec) for spec in split_specs("cpu:threads=1,gpu")]


@pytest.mark.parametrize("text", ["", "cpu,", ",cpu", "cpu,,openvino"])
def test_empty_targets(text: str) -> None:
    with pytest.raises(UsageError, match="empty target"):
        split_specs(text)

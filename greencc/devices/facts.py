"""What a device says of itself, validated."""

from __future__ import annotations
from collections.abc import Mapping
from typing import Any
from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceFacts:
    told: Mapping[str, Any]

    @classmethod
    def parse(cls, told: Mapping[str, Any], name: str) -> DeviceFacts:
        return cls(told)

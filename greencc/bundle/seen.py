"""`seen.keys`: the keys of the samples that a compile has used, one after the other."""

from __future__ import annotations

from greencc.calibration.subsets import SAMPLE_KEY_BYTES


def split_keys(content: bytes) -> frozenset[bytes]:
    """The single keys.

    Raises:
        ValueError: The last one is cut off.
    """
    if len(content) % SAMPLE_KEY_BYTES:
        raise ValueError(f"{len(content)} bytes are no whole number of keys of {SAMPLE_KEY_BYTES} bytes")
    return frozenset(
        content[start : start + SAMPLE_KEY_BYTES] for start in range(0, len(content), SAMPLE_KEY_BYTES)
    )

"""Calibration and evaluation data: open, check, stream, digest and split them."""

from __future__ import annotations

from greencc.calibration.npy import Limits
from greencc.calibration.opening import open_data
from greencc.calibration.preprocess import Preprocess, load_preprocess, parse_preprocess
from greencc.calibration.source import Source
from greencc.calibration.subsets import Part, Subset, overlap, sample_digests, split, take
from greencc.calibration.synthetic import synthetic

__all__ = [
    "Limits",
    "Part",
    "Preprocess",
    "Source",
    "Subset",
    "load_preprocess",
    "open_data",
    "overlap",
    "parse_preprocess",
    "sample_digests",
    "split",
    "synthetic",
    "take",
]

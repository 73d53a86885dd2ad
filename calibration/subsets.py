"""Subsets of a source: seeded selections, and splits that no sample, nor a copy of it, crosses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from greencc.calibration.source import Batches, Indices, Keys, Scan, Source, pick, rebatch, scan
from greencc.core.data import DataSource
from greencc.core.errors import InputError, UsageError

SAMPLE_KEY_BYTES = 16


@dataclass(frozen=True)
class Part:
    """One part of a split: a `fraction` of the samples or a `count` of them, exactly one of the two."""

    name: str
    fraction: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.count is None):
            raise UsageError(f"part '{self.name}' needs either a fraction or a count")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UsageError(f"part '{self.name}': a fraction of {self.fraction} is not in (0, 1]")
        if self.count is not None and self.count < 1:
            raise UsageError(f"part '{self.name}': a count of {self.count} is not positive")


class Subset(Source):
    """The samples of `source` at ascending `indices`, in the source's order."""

    def __init__(self, name: str, source: DataSource, indices: Indices) -> None:
        notes = source.notes if isinstance(source, Source) else ()
        super().__init__(
            name, len(indices), has_labels=source.has_labels, synthetic=source.synthetic, notes=notes
        )
        self._source = source
        self.indices = indices

    def read(self, size: int, wanted: Indices | None = None) -> Batches:
        """Stream the source and keep the subset's samples."""
        indices = self.indices if wanted is None else self.indices[wanted]
        if len(indices) == 0:
            return rebatch((), size)
        if isinstance(self._source, Source):
            return self._source.read(size, indices)
        return rebatch(pick(self._source.batches(size), indices), size)

    @cached_property
    def scan(self) -> Scan:
        """Keys of the subset, taken from the source's when those are known: then nothing is read."""
        if isinstance(self._source, Source) and "scan" in self._source.__dict__:
            return self._source.scan.at(self.indices)
        return scan(self)


def take(source: DataSource, n: int, seed: int = 0) -> DataSource:
    """Return `n` samples evenly spread over the source: a random one from each of `n` equal stretches.

    Sorted data keep their mix of classes, and periodic data are not sampled in step with their period. The
    whole source is returned when it has no more than `n` samples.

    Raises:
        UsageError: `n` is not positive.
    """
    if n < 1:
        raise UsageError(f"a limit of {n} samples is not positive")
    if n >= source.count:
        return source
    borders = np.arange(n + 1, dtype=np.int64) * source.count // n
    indices = np.random.default_rng(seed).integers(borders[:-1], borders[1:])
    return Subset(f"{source.name} ({n} of {source.count})", source, indices.astype(np.int64))


def split(source: DataSource, parts: Sequence[Part], seed: int = 0) -> tuple[DataSource, ...]:
    """Split a source into disjoint parts, pseudo-randomly and independent of the order of the samples.

    Samples are ordered by a keyed hash of their content, and the parts are filled in that order. Copies of a
    sample land in one part, so that nothing seen in calibration is certified on; a part exceeds its size by at
    most the copies of one sample. What the parts leave over is unused. Reads the data once, 32 bytes of memory
    for each sample.

    Raises:
        UsageError: No parts, repeated names, or fractions and counts exceed the source.
        InputError: There are too few distinct samples to give every part one.
    """
    sizes = _sizes(source, parts)
    keys = sample_keys(source)
    group = _groups(keys)
    copies = np.bincount(group)
    first = np.full(len(copies), len(keys), np.int64)
    np.minimum.at(first, group, np.arange(len(keys)))
    order = _shuffled(keys[first], seed)
    part_of_group = np.full(len(copies), -1, np.int64)
    cumulative = np.cumsum(copies[order])
    start = 0
    for number, size in enumerate(sizes):
        taken = int(cumulative[start - 1]) if start else 0
        stop = min(int(np.searchsorted(cumulative, taken + size)) + 1, len(order))
        part_of_group[order[start:stop]] = number
        if start == stop:
            raise InputError(
                f"{source.name} has {len(copies)} distinct samples among {source.count}: "
                f"none are left for '{parts[number].name}'",
                hint="give more data, or separate --calibration and --eval data",
            )
        start = stop
    part = part_of_group[group]
    return tuple(
        Subset(f"{source.name}[{p.name}]", source, np.flatnonzero(part == number))
        for number, p in enumerate(parts)
    )


def sample_digests(source: DataSource) -> Iterator[bytes]:
    """Yield 16 bytes for each sample: BLAKE2b of its inputs (name, dtype, shape, values), names sorted."""
    for key in sample_keys(source):
        yield key.tobytes()


def sample_keys(source: DataSource) -> Keys:
    """The sample digests as an array (n, 16); read from the data once and kept by the source."""
    keys = source.scan.feeds if isinstance(source, Source) else scan(source).feeds
    return keys[:, :SAMPLE_KEY_BYTES]


def overlap(a: DataSource, b: DataSource) -> Indices:
    """Return the indices of the samples of `b` that also occur in `a`, ascending."""
    keys_a, keys_b = sample_keys(a), sample_keys(b)
    group = _groups(np.concatenate([keys_a, keys_b]))
    seen = np.zeros(int(group.max()) + 1, bool)
    seen[group[: len(keys_a)]] = True
    return np.flatnonzero(seen[group[len(keys_a) :]])


def _sizes(source: DataSource, parts: Sequence[Part]) -> list[int]:
    if not parts:
        raise UsageError("a split needs at least one part")
    if len({part.name for part in parts}) != len(parts):
        raise UsageError("two parts of a split have the same name")
    sizes = [part.count or round((part.fraction or 0) * source.count) for part in parts]
    # Rounded halves may add up to more than there is.
    spare = sum(sizes) - source.count
    if all(part.count is None for part in parts) and sum(p.fraction or 0 for p in parts) <= 1 + 1e-9:
        sizes[-1] -= max(0, spare)
    elif spare > 0:
        wanted = ", ".join(f"{part.name} {size}" for part, size in zip(parts, sizes, strict=True))
        raise UsageError(f"{source.name} has {source.count} samples, the parts need more: {wanted}")
    for part, size in zip(parts, sizes, strict=True):
        if size < 1:
            raise InputError(f"{source.name} has {source.count} samples: none for '{part.name}'")
    return sizes


def _groups(keys: Keys) -> NDArray[np.int64]:
    """Number the distinct rows of (n, 16) keys; the number of each row."""
    words = np.ascontiguousarray(keys).view(np.uint64)
    order = np.lexsort((words[:, 1], words[:, 0]))
    ordered = words[order]
    new = np.ones(len(order), np.int64)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(new) - 1
    return group


def _shuffled(keys: Keys, seed: int) -> NDArray[np.int64]:
    """An order of the keys by their keyed hash: the same for the same contents, whatever their order."""
    secret = seed.to_bytes(16, "little", signed=True)
    ranks = bytearray()
    for key in keys:
        ranks += hashlib.blake2b(key.tobytes(), key=secret, digest_size=SAMPLE_KEY_BYTES).digest()
    words = np.frombuffer(ranks, ">u8").reshape(-1, 2)
    return np.lexsort((words[:, 1], words[:, 0]))

"""Open calibration and evaluation data in whichever form the user names them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from greencc.calibration.arrays import open_array_folder, open_arrays
from greencc.calibration.files import contained_files
from greencc.calibration.fit import check_inputs
from greencc.calibration.generators import is_function_spec, open_function
from greencc.calibration.images import IMAGE_SUFFIXES, ImageSource, image_files
from greencc.calibration.labels import Labelled, load_file_labels, load_labels, pack_labels
from greencc.calibration.npy import Limits
from greencc.calibration.preprocess import find_preprocess, load_preprocess
from greencc.calibration.source import Source
from greencc.calibration.subsets import take
from greencc.calibration.synthetic import DEFAULT_COUNT, synthetic
from greencc.core.data import DataSource, TensorSpec
from greencc.core.errors import InputError, UsageError

CALIBRATION = "calibration"
_FORMS = "give an .npz, an .npy, a folder of either or of images, module:function, or synthetic"


def open_data(
    spec: str | Path,
    inputs: Sequence[TensorSpec],
    *,
    labels: Path | None = None,
    preprocess: Path | None = None,
    limit: int | None = None,
    role: str = CALIBRATION,
    limits: Limits | None = None,
) -> DataSource:
    """Open data for a model.

    Args:
        spec: A `.npz` (arrays named after the model's inputs, samples first, optional "labels"), a `.npy`
            (single-input models), a folder of either or of images, ``module:function`` (runs that code), or
            ``synthetic`` / ``synthetic:N``.
        inputs: The model's inputs.
        labels: A file of labels: see `greencc.calibration.labels`. Without it, "labels" arrays count, and for
            images, unless the role is "calibration", a `labels.csv` in or beside the folder.
        preprocess: TOML with the image preprocessing; without it, it is looked for in and beside the folder.
        limit: Use this many samples, evenly spread (of a function: the first ones).
        role: "calibration" or "evaluation", for messages and for what is looked for.
        limits: What is refused as a zip bomb.

    Returns:
        The source, after its first sample was read and checked; the others are when they are reached. All
        samples of calibration data being equal is a remark in its `notes`.

    Raises:
        InputError: The data are missing, corrupt, hostile, or do not fit the model.
        UsageError: The options contradict each other.
        UnavailableError: Images are given and Pillow is not installed.
    """
    check_inputs(inputs)
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} samples is not positive")
    try:
        source = _open(spec, inputs, labels, preprocess, limit, role, limits)
    except OSError as error:
        raise InputError(f"{role} data: cannot read {spec}: {error.strerror or error}") from error
    _first_samples(source, compare=role == CALIBRATION)
    return source if limit is None or source.count <= limit else take(source, limit)


def _open(
    spec: str | Path,
    inputs: Sequence[TensorSpec],
    labels: Path | None,
    preprocess: Path | None,
    limit: int | None,
    role: str,
    limits: Limits | None,
) -> Source:
    text = str(spec)
    path = Path(spec)
    made_up = re.fullmatch(r"synthetic(?::([0-9]{1,9}))?", text) if isinstance(spec, str) else None
    if made_up is None and text.startswith("synthetic:"):
        raise UsageError(f"{role} data: {text} names no number of samples", hint="write synthetic:64")
    if path.is_dir() and not made_up:
        images = image_files(path)
        arrays = contained_files(path, (".npz", ".npy"), recursive=False)
        if images and not arrays:
            return _open_images(path, images, inputs, labels, preprocess, role)
        if not arrays:
            known = ", ".join((".npz", ".npy", *IMAGE_SUFFIXES))
            raise InputError(f"{role} data: there is nothing to read in {path}", hint=f"known: {known}")
        if images:
            raise InputError(f"{role} data: {path} mixes images and arrays", hint="give a folder of one kind")
    if preprocess is not None:
        raise UsageError(f"{role} data: a preprocessing file belongs to a folder of images, not to {text}")
    if made_up:
        if labels is not None:
            raise UsageError("synthetic data have no labels")
        return synthetic(inputs, limit or int(made_up[1] or DEFAULT_COUNT))
    if path.is_dir():
        source = open_array_folder(path, inputs, limits)
    elif path.suffix.lower() in (".npz", ".npy") and path.exists():
        source = open_arrays(path, inputs, limits)
    elif path.exists():
        raise InputError(f"{role} data: {path} is of no known kind", hint=_FORMS)
    elif is_function_spec(text):
        source = open_function(text, inputs, limit)
    else:
        raise InputError(f"{role} data: {text} does not exist", hint=_FORMS)
    return source if labels is None else Labelled(source, load_labels(labels))


def _open_images(
    folder: Path,
    files: Sequence[Path],
    inputs: Sequence[TensorSpec],
    labels: Path | None,
    preprocess: Path | None,
    role: str,
) -> Source:
    if len(inputs) != 1:
        raise InputError(
            f"{role} data: {folder} holds images, but the model has {len(inputs)} inputs",
            hint="save an .npz with one array for each input",
        )
    found = preprocess or find_preprocess(folder)
    if found is None:
        raise InputError(
            f"{role} data: {folder} holds images, and nothing says how to preprocess them",
            hint="put a preprocess.toml into the folder: resize, layout, mean, std (see docs/data.md)",
        )
    steps = load_preprocess(found)
    names = [file.relative_to(folder).as_posix() for file in files]
    notes: tuple[str, ...] = ()
    rows = None
    if labels is not None:
        rows = load_file_labels(labels, folder.name, names)
    elif role != CALIBRATION and (folder / "labels.csv").is_file():
        rows = load_file_labels(folder / "labels.csv", folder.name, names)
    elif role != CALIBRATION and (folder.parent / "labels.csv").is_file():
        # It may belong to a neighbouring folder.
        rows = load_file_labels(folder.parent / "labels.csv", folder.name, names, strict=False) or None
    if rows is None:
        return ImageSource(folder, files, steps, inputs[0])
    if not rows:
        raise InputError(f"{role} data: none of the images in {folder} has a label")
    labelled = sorted(rows)
    if len(labelled) < len(files):
        notes = (
            f"{len(files) - len(labelled)} of {len(files)} images in {folder} have no label and are left out",
        )
    source = ImageSource(folder, [files[i] for i in labelled], steps, inputs[0])
    source.notes = notes
    return Labelled(source, pack_labels([rows[i] for i in labelled], str(labels or "labels.csv")))


def _first_samples(source: Source, *, compare: bool) -> None:
    """Read the first sample; with `compare` go on until one differs, and note it when none does."""
    first = None
    with closing(source.batches(1)) as batches:
        for batch in batches:
            if not compare or source.synthetic:
                return
            first = first or batch
            if any(not np.array_equal(array, first.feeds[name]) for name, array in batch.feeds.items()):
                return
    if source.count > 1:
        note = f"all {source.count} samples of {source.name} are equal: ranges found on them mean little"
        source.notes = (*source.notes, note)

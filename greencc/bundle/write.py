"""Write the parts of a bundle around an artifact that was already built into its folder."""

from __future__ import annotations

from pathlib import Path

from greencc.bundle.manifest import FILE_NAME, FileEntry, Manifest, safe_name
from greencc.bundle.seen import split_keys
from greencc.bundle.trust import trust
from greencc.core.engine import Target
from greencc.core.errors import InputError
from greencc.core.files import sha256_file
from greencc.core.report import Report
from greencc.report import dump_report, render_html, render_markdown, stored
from greencc.targets import format_spec

RECIPE = "recipe.toml"
REPORT = "report.json"
SEEN = "seen.keys"


def write_bundle(
    folder: Path,
    *,
    report: Report,
    recipe: str,
    artifact: Path,
    target: Target,
    model_digest: str,
    evaluation_digest: str | None = None,
    seen: bytes = b"",
) -> Manifest:
    """Add recipe, reports and manifest to `folder`, the last of them listing every file in it.

    The artifact is opened once to record its inputs and outputs: what cannot be opened is not shipped. A bundle with
    compiled code is trusted from then on (`greencc.bundle.trust`): the code was made here.

    Args:
        folder: A temporary folder (`greencc.core.files.atomic_folder`) that already holds the artifact files.
        recipe: TOML text (`greencc.core.recipe.dump_recipe`).
        artifact: The artifact's main file, inside `folder` (what `Target.build` returned).
        model_digest: Digest of the source model's graph and weights (`greencc.core.model.digest`).
        evaluation_digest: Digest of the certification data, None when there was none.
        seen: Keys (`greencc.calibration.subsets.sample_keys`), one after the other, of all samples that the artifact
            was tuned or chosen on: they certify nothing later. They are stored sorted, each once.

    Raises:
        InputError: The folder holds a link or a file name that a manifest cannot list, or trust cannot be recorded.
        ValueError: `seen` is no sequence of whole keys.
    """
    # What is read here and what is rendered later from report.json must be the same to the letter.
    report = stored(report, "report")
    texts = {
        RECIPE: recipe,
        REPORT: dump_report(report),
        "report.html": render_html(report),
        "report.md": render_markdown(report),
    }
    for file_name, text in texts.items():
        (folder / file_name).write_text(text, encoding="utf-8", newline="\n")
    if seen:
        (folder / SEEN).write_bytes(b"".join(sorted(split_keys(seen))))
    engine = target.open(artifact)
    try:
        inputs, outputs = tuple(engine.inputs), tuple(engine.outputs)
    finally:
        engine.close()
    device = target.device()
    data = {
        "calibration": None if report.calibration is None else report.calibration.digest,
        "evaluation": evaluation_digest,
    }
    manifest = Manifest(
        greencc=report.greencc,
        name=report.model.name.removesuffix(".onnx"),
        main=artifact.relative_to(folder).as_posix(),
        recipe=RECIPE,
        report=REPORT,
        target=format_spec(target),
        device=device.name,
        fingerprint=device.fingerprint,
        model_name=report.model.name,
        model_sha256=report.model.sha256,
        model_digest=model_digest,
        data={role: digest for role, digest in data.items() if digest is not None},
        versions=report.versions,
        inputs=inputs,
        outputs=outputs,
        files=_listed(folder),
        seen=SEEN if seen else None,
    )
    manifest, content = manifest.written()
    (folder / FILE_NAME).write_bytes(content)
    if target.ships_code:
        trust(manifest, "compiled here")
    return manifest


def _listed(folder: Path) -> dict[str, FileEntry]:
    entries: dict[str, FileEntry] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise InputError(
                f"the artifact contains the link {relative!r}", hint="bundles hold plain files only"
            )
        if path.is_dir():
            continue
        if not safe_name(relative):
            raise InputError(f"the artifact has a file named {relative!r}, which a bundle cannot list")
        entries[relative] = FileEntry(path.stat().st_size, sha256_file(path))
    return entries

"""Bundles: a verified folder with the artifact, its recipe, its report and the hashes of them all."""

from greencc.bundle.bundle import Bundle, load
from greencc.bundle.manifest import Manifest
from greencc.bundle.write import write_bundle

__all__ = ["Bundle", "Manifest", "load", "write_bundle"]

"""The executor's object files, which are the same for all models: compiled once for each compiler.

They are kept in this process and in the user's cache, under a key of all that decides what they are. They are code: as
in `compiled`, a cache that others may write to is not read.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from greencc.core.cache import cache_key, default_folder
from greencc.targets._tvm.compiled import private_cache

if TYPE_CHECKING:
    from greencc.targets._tvm.link import Toolchain

KIND = "executor"
_VARIABLES = ("CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "GCC_EXEC_PREFIX", "COMPILER_PATH")
"""Where compilers look for headers, libraries and their own parts (GCC's manual, "Environment Variables")."""

_known: dict[str, Mapping[str, bytes]] = {}


def executor_objects(
    toolchain: Toolchain, sources: Mapping[str, str], headers: Mapping[str, str], flags: Sequence[str]
) -> Mapping[str, bytes]:
    """An object file for every source, by its name with ``.o``.

    Args:
        toolchain: What compiles.
        sources: Texts by file name.
        headers: Likewise, what they include.
        flags: For each of them.

    Raises:
        UnavailableError: The compiler cannot be started, or fails.
    """
    version = toolchain.version()
    places = {name: os.environ.get(name) for name in _VARIABLES}
    key = cache_key(KIND, list(toolchain.command), version, list(flags), dict(sources), dict(headers), places)
    if key in _known:
        return _known[key]
    cache = private_cache(default_folder(), KIND)
    found = None if cache is None else cache.get(KIND, key)
    if found is None:
        found = {
            name: np.frombuffer(content, np.uint8)
            for name, content in _compiled(toolchain, sources, headers, flags).items()
        }
        if cache is not None:
            cache.put(KIND, key, found, label=f"executor for {toolchain.architecture}")
    _known[key] = {name: content.tobytes() for name, content in found.items()}
    return _known[key]


def _compiled(
    toolchain: Toolchain, sources: Mapping[str, str], headers: Mapping[str, str], flags: Sequence[str]
) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="greencc-") as name:
        folder = Path(name)
        for file, text in {**sources, **headers}.items():
            (folder / file).write_text(text, encoding="utf-8")
        for source in sources:
            made = Path(source).stem + ".o"
            toolchain.run([*flags, "-c", source, "-o", made], folder, f"compiling {source}")
            found[made] = (folder / made).read_bytes()
    return found

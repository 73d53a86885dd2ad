"""JetPack 4 has Python 3.6: its syntax and its standard library are all that the agent may use."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

AGENT = Path(__file__).parents[2] / "greencc" / "agent"
FILES = sorted(AGENT.rglob("*.py"))
# What came later ("What's New in Python 3.7" to 3.12), by how it is written.
LATER_MODULES = {
    "dataclasses",
    "contextvars",
    "importlib.resources",
    "importlib.metadata",
    "zoneinfo",
    "tomllib",
    "graphlib",
}
# As text: a set of each.
LATER_NAMES = {
    module: set(names.split())
    for module, names in {
        "contextlib": "AsyncExitStack aclosing asynccontextmanager chdir nullcontext",
        "functools": "cache cached_property singledispatchmethod",
        "math": "cbrt comb dist exp2 isqrt lcm nextafter perm prod ulp",
        "time": "clock_gettime_ns monotonic_ns perf_counter_ns process_time_ns thread_time "
        "thread_time_ns time_ns",
        "statistics": "NormalDist correlation fmean geometric_mean linear_regression multimode quantiles",
        "os": "add_dll_directory memfd_create pidfd_open posix_spawn preadv pwritev register_at_fork "
        "waitstatus_to_exitcode",
        "shlex": "join",
        "typing": "Annotated Final ForwardRef Literal Protocol Self TypeAlias TypedDict final get_args "
        "get_origin",
        "itertools": "batched pairwise",
        "random": "randbytes",
        "asyncio": "create_task get_running_loop run to_thread",
        "signal": "raise_signal strsignal valid_signals",
        "threading": "excepthook get_native_id",
        "sys": "addaudithook orig_argv stdlib_module_names unraisablehook",
        "queue": "SimpleQueue",
    }.items()
}
LATER_METHODS = {"removeprefix", "removesuffix", "isascii", "is_relative_to", "with_stem", "readlink", "hardlink_to",
                 "bit_count", "fromisoformat", "toreadonly", "reconfigure"}  # fmt: skip
LATER_KEYWORDS = {
    "run": {"capture_output", "text"},
    "Popen": {"text", "pipesize", "process_group", "umask", "user", "group"},
    "check_output": {"text"},
    "copytree": {"dirs_exist_ok"},
    "unlink": {"missing_ok"},
    "add_subparsers": {"required"},
    "ArgumentParser": {"exit_on_error"},
    "b2a_base64": {"backtick"},
    "writestr": {"compresslevel"},
    "zip": {"strict"},
    "sum": {"start"},
    "namedtuple": {"defaults"},
    "TemporaryDirectory": {"ignore_cleanup_errors", "delete"},
    "ZipFile": {"compresslevel", "strict_timestamps"},
    "pow": {"mod"},
}
BUILTIN_GENERICS = {"list", "dict", "tuple", "set", "frozenset", "type"}


def later(tree: ast.AST) -> list[str]:
    """What a file uses that Python 3.6 lacks."""
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = {each.name for each in node.names}
            if module == "__future__" and "annotations" in names:
                found.append(f"{line}: from __future__ import annotations")
            if module in LATER_MODULES or names & LATER_NAMES.get(module, set()):
                found.append(f"{line}: from {module} import {', '.join(sorted(names))}")
        elif isinstance(node, ast.Import):
            found += [f"{line}: import {each.name}" for each in node.names if each.name in LATER_MODULES]
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in LATER_NAMES.get(owner, set()) or node.attr in LATER_METHODS:
                found.append(f"{line}: {owner}.{node.attr}")
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            used = {each.arg for each in node.keywords} & LATER_KEYWORDS.get(name, set())
            found += [f"{line}: {name}({each}=)" for each in sorted(each for each in used if each)]
        elif isinstance(node, ast.Subscript) and getattr(node.value, "id", "") in BUILTIN_GENERICS:
            found.append(f"{line}: {ast.unparse(node.value)}[...]")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(AGENT)))
def test_every_file_is_for_python_3_6(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, str(path), feature_version=(3, 6))
    assert later(tree) == []


def test_it_imports_itself_and_the_standard_library_alone() -> None:
    """Vendors' packages are imported where they are used, in processes of their own."""
    vendors = {"tensorrt", "onnxruntime", "numpy"}
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                if top in vendors:
                    assert node not in tree.body, f"{path.name} imports {name} when it is imported"
                    assert path.name.endswith("_child.py")
                elif top == "greencc":
                    assert name == "greencc.agent" or name.startswith("greencc.agent.")
                else:
                    assert top in sys.stdlib_module_names, f"{path.name} imports {name}"


@pytest.mark.parametrize(
    "source",
    [
        "from __future__ import annotations",
        "import dataclasses",
        "import subprocess\nsubprocess.run([], capture_output=True)",
        "import time\ntime.monotonic_ns()",
        "'abc'.removeprefix('a')",
        "from contextlib import nullcontext",
        "import math\nmath.prod([])",
        "def f(x: list[int]): ...",
    ],
)
def test_what_is_later_is_found(source: str) -> None:
    assert later(ast.parse(source))


@pytest.mark.parametrize(
    "source", ["if (x := 1): pass", "def f(a, /): ...", "f'{x=}'", "match x:\n case 1: pass"]
)
def test_later_syntax_is_refused(source: str) -> None:
    with pytest.raises(SyntaxError):
        ast.parse(source, feature_version=(3, 6))

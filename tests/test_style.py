"""House rules over sim/, kernel_model/ and workloads/ that no linter knows.

A check takes one source file and yields a message per breach.  Each comes with snippets that
it has to refuse and snippets that it has to accept: a check that cannot fail is worthless.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sim", "kernel_model", "workloads")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# What talks to the user and keeps time budgets may measure durations.
MEASURING = ("sim/totals.py", "sim/campaign.py", "sim/sizing.py", "sim/cli.py")
DURATIONS = ("time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns")

# Ours, not mirrors of a Linux file.
NOT_MIRRORED = tuple(
    f"kernel_model/{name}.py"
    for name in (
        "kernel",
        "fixes",
        "checks",
        "checks_tail_call",
        "checks_text",
        "listing",
        "boot",
        "workload",
    )
)
LINUX_FILE = re.compile(r"\b[\w-]+(/[\w.-]+)+\.[chS]\b")

# Prefixes of what differs from run to run, and what to use instead.
UNREPRODUCIBLE = {
    "time.": "use sim.clock",
    "datetime.datetime.now": "use sim.clock",
    "datetime.datetime.today": "use sim.clock",
    "datetime.datetime.utcnow": "use sim.clock",
    "datetime.date.today": "use sim.clock",
    "trio.current_time": "use sim.clock",
    "random.": "own a random.Random(seed)",
    "secrets.": "own a random.Random(seed)",
    "os.urandom": "own a random.Random(seed)",
    "uuid.": "name things by meaning",
}

# Calls that keep the order of what they are given.
ORDER_KEEPING = ("list", "tuple", "iter", "next", "enumerate", "map", "filter", "zip", "join")


@dataclass(frozen=True)
class Source:
    """One file: its path from the root of the project, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.path.partition("/")[0]

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.tree) or ""


Check = Callable[[Source], Iterator[str]]


@cache
def read(path: str) -> Source:
    text = (ROOT / path).read_text()
    return Source(path, text, ast.parse(text, path))


def files_are_short(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{lines} lines, {MAX_FILE_LINES} are allowed: split it by topic"


def functions_are_short(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield (
                    f"line {node.lineno}: {node.name} has {lines} lines, "
                    f"{MAX_FUNCTION_LINES} are allowed"
                )


def modules_have_a_docstring(source: Source) -> Iterator[str]:
    if not source.docstring.strip():
        yield "no module docstring"


def model_names_its_original(source: Source) -> Iterator[str]:
    if source.package != "kernel_model" or source.path.endswith("/__init__.py"):
        return
    if "Not modelled:" not in source.docstring:
        yield 'no "Not modelled:" in the module docstring: say what was left out, or "nothing"'
    if source.path in NOT_MIRRORED:
        return
    first = source.docstring.partition("\n")[0]
    if not LINUX_FILE.search(first) or "v5.10" not in first:
        yield (
            f"the first docstring line is {first!r}: name the Linux file and its version, "
            'such as "kernel/bpf/arraymap.c, v5.10"'
        )


def called_name(call: ast.Call) -> str:
    """The last part of what is called: `join` for `", ".join(...)`."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def nothing_depends_on_identity(source: Source) -> Iterator[str]:
    """`id` and `hash` differ from process to process, whether called or passed on."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        passed = [keyword.value for keyword in node.keywords if keyword.arg == "key"]
        if called_name(node) == "map":
            passed += node.args
        for used in [node.func, *passed]:
            if isinstance(used, ast.Name) and used.id in ("id", "hash"):
                yield f"line {node.lineno}: {used.id}() differs from run to run: use an address"


def imported_names(tree: ast.Module) -> dict[str, str]:
    """What each name bound by an import stands for, in full: {"dt": "datetime.datetime"}."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def full_name(node: ast.expr, imported: dict[str, str]) -> str:
    """The dotted name of an expression that begins with an imported name, or an empty string."""
    match node:
        case ast.Name(id=name):
            return imported.get(name, "")
        case ast.Attribute(value=value, attr=attr):
            base = full_name(value, imported)
            return f"{base}.{attr}" if base else ""
    return ""


def nothing_asks_the_machine(source: Source) -> Iterator[str]:
    imported = imported_names(source.tree)
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Name | ast.Attribute | ast.Call):
            continue
        if isinstance(node, ast.Call):
            if full_name(node.func, imported) == "random.Random" and not node.args:
                yield f"line {node.lineno}: random.Random() is seeded by the machine: pass a seed"
            continue
        name = full_name(node, imported)
        if name.startswith("random.Random") or (name in DURATIONS and source.path in MEASURING):
            continue
        for prefix, instead in UNREPRODUCIBLE.items():
            if name.startswith(prefix):
                yield f"line {node.lineno}: {name} differs from run to run: {instead}"
    for local, name in imported.items():
        if local == "*" and name.removesuffix("*") in UNREPRODUCIBLE:
            yield f"{name} differs from run to run, and hides where it is used"


def is_set(node: ast.expr) -> bool:
    """Whether an expression is a set by its form alone."""
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id="set" | "frozenset")):
            return True
        case ast.BinOp(left=left, right=right):
            return is_set(left) or is_set(right)
    return False


def no_set_is_iterated(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        iterated: list[ast.expr] = []
        match node:
            case ast.For(iter=it) | ast.comprehension(iter=it):
                iterated = [it]
            case ast.Starred(value=value):
                iterated = [value]
            case ast.Call() if called_name(node) in ORDER_KEEPING:
                iterated = node.args
        for expression in iterated:
            if is_set(expression):
                yield (
                    f"line {expression.lineno}: {ast.unparse(expression)} has no fixed order: "
                    "wrap it in sorted(...), or use a dict or a tuple"
                )


CHECKS: list[Check] = [
    files_are_short,
    functions_are_short,
    modules_have_a_docstring,
    model_names_its_original,
    nothing_depends_on_identity,
    nothing_asks_the_machine,
    no_set_is_iterated,
]

SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", SOURCES)
def test_style(path: str, check: Check) -> None:
    breaches = list(check(read(path)))
    assert not breaches, "\n".join(f"{path}: {breach}" for breach in breaches)


def test_sources_are_found() -> None:
    for package in PACKAGES:
        assert f"{package}/__init__.py" in SOURCES


MIRROR = '"""kernel/bpf/arraymap.c, v5.10.\n\nNot modelled: percpu arrays.\n"""\n'

# check, path, text
REFUSED: list[tuple[Check, str, str]] = [
    (files_are_short, "sim/x.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
    (functions_are_short, "sim/x.py", "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    (functions_are_short, "sim/x.py", "async def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    (functions_are_short, "sim/x.py", "class C:\n def f():\n" + "  x = 1\n" * MAX_FUNCTION_LINES),
    (modules_have_a_docstring, "workloads/x.py", "x = 1\n"),
    (modules_have_a_docstring, "workloads/x.py", '" "\n'),
    (model_names_its_original, "kernel_model/bpf/x.py", MIRROR.replace("Not modelled:", "Without")),
    (model_names_its_original, "kernel_model/bpf/x.py", MIRROR.replace("v5.10", "v6.8")),
    (model_names_its_original, "kernel_model/bpf/x.py", MIRROR.replace(".c", "")),
    (model_names_its_original, "kernel_model/fixes.py", '"""Fixes."""\n'),
    (nothing_depends_on_identity, "sim/x.py", "id(x)"),
    (nothing_depends_on_identity, "sim/x.py", "hash((x, y))"),
    (nothing_depends_on_identity, "sim/x.py", "sorted(xs, key=id)"),
    (nothing_depends_on_identity, "sim/x.py", "xs.sort(key=hash)"),
    (nothing_depends_on_identity, "sim/x.py", "map(id, xs)"),
    (nothing_asks_the_machine, "sim/x.py", "import time\ntime.monotonic()"),
    (nothing_asks_the_machine, "sim/x.py", "import time as t\nt.time()"),
    (nothing_asks_the_machine, "sim/x.py", "from time import sleep\nsleep(1)"),
    (nothing_asks_the_machine, "sim/x.py", "from time import *"),
    (nothing_asks_the_machine, "sim/cli.py", "import time\ntime.time()"),
    (nothing_asks_the_machine, "sim/x.py", "import datetime as dt\ndt.datetime.now()"),
    (nothing_asks_the_machine, "sim/x.py", "from datetime import datetime\ndatetime.now()"),
    (nothing_asks_the_machine, "sim/x.py", "import random\nrandom.choice(xs)"),
    (nothing_asks_the_machine, "sim/x.py", "from random import shuffle\nshuffle(xs)"),
    (nothing_asks_the_machine, "sim/x.py", "import random\nrandom.SystemRandom(1)"),
    (nothing_asks_the_machine, "sim/x.py", "import random\nrandom.Random()"),
    (nothing_asks_the_machine, "sim/x.py", "import os\nos.urandom(8)"),
    (no_set_is_iterated, "sim/x.py", "for x in {1, 2}: pass"),
    (no_set_is_iterated, "sim/x.py", "for x in set(xs): pass"),
    (no_set_is_iterated, "sim/x.py", "for x in set(xs) | ys: pass"),
    (no_set_is_iterated, "sim/x.py", "[x for x in frozenset(xs)]"),
    (no_set_is_iterated, "sim/x.py", "{x: 1 for x in {y for y in ys}}"),
    (no_set_is_iterated, "sim/x.py", "list({1, 2})"),
    (no_set_is_iterated, "sim/x.py", "enumerate(set(xs))"),
    (no_set_is_iterated, "sim/x.py", "', '.join({str(x) for x in xs})"),
    (no_set_is_iterated, "sim/x.py", "[*set(xs)]"),
]

ACCEPTED: list[tuple[Check, str, str]] = [
    (files_are_short, "sim/x.py", "x = 1\n" * MAX_FILE_LINES),
    (functions_are_short, "sim/x.py", "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)),
    (modules_have_a_docstring, "sim/x.py", '"""What it is."""\n'),
    (model_names_its_original, "kernel_model/bpf/x.py", MIRROR),
    (model_names_its_original, "kernel_model/x86/x.py", MIRROR.replace("bpf/arraymap.c", "x.S")),
    (model_names_its_original, "kernel_model/bpf/__init__.py", '"""kernel/bpf."""\n'),
    (model_names_its_original, "kernel_model/fixes.py", '"""Fixes.\n\nNot modelled: -.\n"""\n'),
    (model_names_its_original, "sim/x.py", '"""Cells."""\n'),
    (nothing_depends_on_identity, "sim/x.py", "map.id\nx.hash()\nload(id)"),
    (nothing_asks_the_machine, "sim/x.py", "import random\nrandom.Random(seed).choice(xs)"),
    (nothing_asks_the_machine, "sim/x.py", "from random import Random\nRandom(seed).random()"),
    (nothing_asks_the_machine, "sim/x.py", "clock.time.now\nself.random.choice(xs)"),
    (nothing_asks_the_machine, "sim/totals.py", "import time\ntime.monotonic()"),
    (nothing_asks_the_machine, "sim/cli.py", "from time import perf_counter\nperf_counter()"),
    (no_set_is_iterated, "sim/x.py", "for x in sorted({1, 2}): pass"),
    (no_set_is_iterated, "sim/x.py", "for x in dict.fromkeys(xs): pass"),
    (no_set_is_iterated, "sim/x.py", "x in {1, 2} and len(set(xs)) == 2"),
    (no_set_is_iterated, "sim/x.py", "[*sorted(set(xs))]"),
]


def numbered(cases: list[tuple[Check, str, str]]) -> list[str]:
    """Test names without the snippets, some of which are files of 400 lines."""
    return [f"{check.__name__}-{number}" for number, (check, _, _) in enumerate(cases)]


@pytest.mark.parametrize(("check", "path", "text"), REFUSED, ids=numbered(REFUSED))
def test_check_refuses(check: Check, path: str, text: str) -> None:
    assert list(check(Source(path, text, ast.parse(text))))


@pytest.mark.parametrize(("check", "path", "text"), ACCEPTED, ids=numbered(ACCEPTED))
def test_check_accepts(check: Check, path: str, text: str) -> None:
    assert not list(check(Source(path, text, ast.parse(text))))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_check_is_tested(check: Check) -> None:
    assert check in [refused for refused, _, _ in REFUSED]
    assert check in [accepted for accepted, _, _ in ACCEPTED]

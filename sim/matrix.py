"""A table of workloads on kernels, with and without mutants, and what each is expected to show.

A row of the file (TOML)::

    [[row]]
    workload = "inner_map_replace"   # a name, or a file, relative to the table
    params = { outer = "hash" }      # the workload's defaults
    kernel = "6.8"                   # the workload's default
    with = ["mutant:..."]            # fixes and mutants added
    without = ["876673364161"]       # fixes left out
    expect = ["use-after-free"]      # kinds, one of which is to be found; []: nothing is;
                                     # "refused": the kernel refuses the workload
    not_by = ["random"]              # strategies that need luck: they may find nothing
    executions = 300                 # budget of each search
    fast = true                      # quick enough for every run of CI

Only `workload` and `expect` have to be there.  Every row is searched by random walk and by PCT,
until the first finding or the end of the budget.  There is no budget in seconds: all but the
seconds is the same whenever the same rows are searched.
"""

from __future__ import annotations

import importlib.resources
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from sim.choosing import Strategy
from sim.errors import MisuseError, UsageError
from sim.explore import Budget, Explorer, Result
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.workload import WORKLOADS, Program, find

FILE: Final = "matrix.toml"  # of the package of workloads: the table that is read by default
EXECUTIONS: Final = 300
REFUSED: Final = "refused"
BROKEN: Final = "error"
STRATEGIES: Final[Mapping[str, Callable[[int], Strategy]]] = {"random": RandomWalk, "pct": Pct}
KEYS: Final = (
    "workload params kernel with without expect not_by executions fast".split()
)  # of a row, in the order above


@final
@dataclass(frozen=True)
class Row:
    """A row of the file: `number` counts from 1; the other fields are named as its keys.

    expect  the kinds of which one is to be seen; REFUSED is one of them; empty: nothing
    program what is searched
    """

    number: int
    workload: str
    params: Mapping[str, str]
    kernel: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    expect: tuple[str, ...]
    not_by: tuple[str, ...]
    executions: int
    fast: bool
    program: Program


@final
@dataclass(frozen=True)
class Seen:
    """What one search showed.

    kinds       of the deciding findings, first found first; REFUSED or BROKEN alone
    executions  to the first finding; without one, all that were run
    races       distinct data races by design, which decide nothing
    message     why it was refused or broke
    """

    kinds: tuple[str, ...]
    executions: int
    seconds: float
    races: int = 0
    message: str = ""


@final
@dataclass(frozen=True)
class Outcome:
    """A row, and what each strategy showed, by the strategy's name."""

    row: Row
    seen: Mapping[str, Seen]

    @property
    def unexpected(self) -> tuple[str, ...]:
        """The strategies that showed something else than expected."""
        return tuple(
            name for name, seen in self.seen.items() if not _expected(self.row, name, seen)
        )

    def as_json(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        row = self.row
        return {
            "row": row.number,
            "workload": row.workload,
            "params": dict(row.params),
            "kernel": row.kernel,
            "with": list(row.added),
            "without": list(row.removed),
            "expect": list(row.expect),
            "not_by": list(row.not_by),
            "as_expected": not self.unexpected,
            "seen": {
                name: {
                    "kinds": list(seen.kinds),
                    "as_expected": name not in self.unexpected,
                    "executions": seen.executions,
                    "seconds": round(seen.seconds, 3),
                    "races": seen.races,
                    "message": seen.message,
                }
                for name, seen in self.seen.items()
            },
        }


def _expected(row: Row, strategy: str, seen: Seen) -> bool:
    if not seen.kinds:
        return not row.expect or strategy in row.not_by
    return seen.kinds[0] in row.expect


# -- searching -----------------------------------------------------------------------------------


def search(
    row: Row,
    seed: int = 0,
    executions: int | None = None,
    progress: Callable[[Result], None] | None = None,
) -> Outcome:
    """Search a row with every strategy; `executions` overrides its budget."""
    budget = Budget(executions or row.executions, math.inf)
    seen = {
        name: _search(row.program, make(seed), budget, progress)
        for name, make in STRATEGIES.items()
    }
    return Outcome(row, seen)


def _search(
    program: Program,
    strategy: Strategy,
    budget: Budget,
    progress: Callable[[Result], None] | None,
) -> Seen:
    explorer = Explorer(program, strategy, budget)
    try:
        result = explorer.explore(progress)
    except (UsageError, MisuseError) as error:  # the table goes on; the row is marked
        kind = REFUSED if isinstance(error, UsageError) else BROKEN
        done = explorer.result
        return Seen((kind,), done.executions, done.elapsed_s, message=str(error))
    kinds = tuple(found.finding.kind for found in result.findings)
    executions = result.findings[0].number if kinds else result.executions
    return Seen(kinds, executions, result.elapsed_s, len(result.races))


# -- reading the table ---------------------------------------------------------------------------


def read_matrix(path: Path | None = None) -> list[Row]:
    """The rows of a file (default: the table of the package of workloads).

    Raises UsageError that names the file, the row and what is wrong.
    """
    source = importlib.resources.files(WORKLOADS).joinpath(FILE) if path is None else path
    try:
        table = tomllib.loads(source.read_bytes().decode())
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML
        raise UsageError(f"{source}: {error}") from None
    rows = table.pop("row", [])
    if table:
        raise UsageError(f"{source}: unknown key {next(iter(table))!r}; rows begin with [[row]]")
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{source}: no rows; each begins with [[row]]")
    base = path.parent if path is not None else Path()
    made = []
    for number, keys in enumerate(rows, 1):
        try:
            made.append(_row(number, keys, base))
        except UsageError as error:
            raise UsageError(f"{source}: row {number}: {error}") from None
    return made


def select(rows: Sequence[Row], only: str = "", *, fast: bool = False) -> list[Row]:
    """The rows of the workload `only`, of them the fast ones.  UsageError if there is none."""
    names = list(dict.fromkeys(row.workload for row in rows))
    if only and only not in names:
        raise UsageError(f"--only {only}: no row has that workload; rows have: {', '.join(names)}")
    chosen = [row for row in rows if only in ("", row.workload) and (row.fast or not fast)]
    if not chosen:
        raise UsageError("--fast: none of these rows has fast = true")
    return chosen


def _row(number: int, keys: Any, base: Path) -> Row:
    if not isinstance(keys, dict):
        raise UsageError(f"{keys!r} is no table; rows begin with [[row]]")
    for key in keys:
        if key not in KEYS:
            raise UsageError(f"unknown key {key!r}; known: {', '.join(KEYS)}")
    for key in ("workload", "expect"):
        if key not in keys:
            raise UsageError(f"{key} is missing")
    name, kernel = _text(keys, "workload"), _text(keys, "kernel")
    params, added, removed = _params(keys), _names(keys, "with"), _names(keys, "without")
    file = str(base / name) if name.endswith(".py") else name
    return Row(
        number,
        name,
        params,
        kernel,
        added,
        removed,
        _expect(keys),
        _not_by(keys),
        _executions(keys),
        _flag(keys, "fast"),
        find(file).prepare(params, version=kernel or None, add=added, remove=removed),
    )


def _text(keys: Mapping[str, Any], key: str) -> str:
    value = keys.get(key, "")
    if not isinstance(value, str):
        raise UsageError(f"{key} = {value!r}: text is needed, in quotes")
    return value


def _names(keys: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = keys.get(key, [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UsageError(f'{key} = {value!r}: a list of texts is needed, as ["..."]')
    return tuple(value)


def _flag(keys: Mapping[str, Any], key: str) -> bool:
    value = keys.get(key, False)
    if not isinstance(value, bool):
        raise UsageError(f"{key} = {value!r}: write true or false")
    return value


def _executions(keys: Mapping[str, Any]) -> int:
    value = keys.get("executions", EXECUTIONS)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"executions = {value!r}: a whole number of 1 or more is needed")
    return value


def _params(keys: Mapping[str, Any]) -> dict[str, str]:
    """The parameters as they would be given on the command line."""
    value = keys.get("params", {})
    if not isinstance(value, dict):
        raise UsageError(f'params = {value!r}: a table is needed, as {{ name = "value" }}')
    for name, given in value.items():
        if not isinstance(given, str | int):
            raise UsageError(f"params.{name} = {given!r}: text, a whole number, true or false")
    return {
        name: str(given).lower() if isinstance(given, bool) else str(given)
        for name, given in value.items()
    }


def _expect(keys: Mapping[str, Any]) -> tuple[str, ...]:
    if isinstance(keys["expect"], str):
        if keys["expect"] == REFUSED:
            return (REFUSED,)
        raise UsageError(
            f'expect = {keys["expect"]!r}: write a list of kinds (["use-after-free"], or [] for '
            f'nothing), or "{REFUSED}"'
        )
    return _names(keys, "expect")


def _not_by(keys: Mapping[str, Any]) -> tuple[str, ...]:
    names = _names(keys, "not_by")
    for name in names:
        if name not in STRATEGIES:
            raise UsageError(f"not_by: {name!r} is no strategy; known: {', '.join(STRATEGIES)}")
    if names and _expect(keys) in ((), (REFUSED,)):
        raise UsageError("not_by is for rows that expect a finding")
    if len(dict.fromkeys(names)) == len(STRATEGIES):
        raise UsageError("not_by: at least one strategy has to find it")
    return names

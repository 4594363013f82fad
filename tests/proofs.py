"""What is proved: a complete search of everything that is expected to be clean.

``make proofs`` puts the table into docs/proofs.md.  The rows are those of the matrix that expect
nothing (the negative controls among them), and some that only this table has (`MORE`).  Each is
searched by ``rcusim explore``, in a process of its own, until it has been searched completely or
its budget is spent; with ``--again``, a larger one where that ought to be enough.

The rows, their order and everything about a row that is proved are the same every time, except for
the seconds; where a budget cuts a search is up to the machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sim.console import EXIT_CODES
from sim.matrix import read_matrix
from sim.native import compiled
from sim.workload import find

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-c", "from sim.cli import main; main()")  # ``rcusim`` of this tree
TRACES = ".rcusim/proofs"  # where a trace is put if something is found
SECONDS = 60.0
BEGIN = "<!-- generated: python -m tests.proofs -->"
END = "<!-- end of what is generated -->"
ERROR = "error"


class Case(NamedTuple):
    """What is searched; all names as on the command line."""

    workload: str
    kernel: str
    params: tuple[tuple[str, str], ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        """The arguments of ``rcusim explore``."""
        return [
            self.workload,
            f"--kernel={self.kernel}",
            *(f"--with={name}" for name in self.added),
            *(f"--without={name}" for name in self.removed),
            *(f"--param={name}={value}" for name, value in self.params),
        ]

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for cases that are the same program, however they are written."""
        program = find(self.workload).prepare(
            dict(self.params), version=self.kernel, add=self.added, remove=self.removed
        )
        environment = program.machine.environment.items()
        return (self.workload, *program.params.items(), *environment)


#: Beside the rows of the matrix: what has been asked for by name, and smaller or later relatives of
#: rows that are too large.
MORE = (
    Case("inner_map_replace", "6.8", (("readers", "2"),)),
    Case("inner_map_replace", "6.8", (("updates", "2"),)),
    Case("tailcall_poke", "5.10"),
    Case("tailcall_poke", "5.10", (("installed", "yes"),)),
    Case("tailcall_poke", "5.10", (("callers", "1"), ("runs", "2"), ("reinstall", "yes"))),
    Case("tailcall_poke", "5.10", (("reinstall", "yes"),)),
    Case("tailcall_poke", "5.10", (("source", "subprog"),)),
    Case("tailcall_poke", "6.12"),
    Case("tailcall_poke", "6.12", (("installed", "yes"),)),
    Case("tailcall_owner", "6.8"),
    Case("tailcall_subprog_untrack", "6.8"),
    Case("trampoline_fexit_sleep", "5.14"),
    Case("trampoline_halfpage", "5.14"),
)


def cases() -> list[Case]:
    """All of them in the order of the matrix, each program once."""
    rows = [
        Case(row.workload, row.kernel, tuple(row.params.items()), row.added, row.removed)
        for row in read_matrix()
        if not row.expect
    ]
    order = {name: at for at, name in enumerate(dict.fromkeys(row.workload for row in rows))}
    every = sorted([*rows, *MORE], key=lambda case: order[case.workload])
    return list({case.identity: case for case in reversed(every)}.values())[::-1]


# -- one search ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Searched:
    """What ``rcusim explore --json`` told of a case.

    told   empty if it failed; then the exit code and the last line of its errors are in `error`
    cpu_s  seconds of a CPU that the process took, its start included
    """

    case: Case
    told: dict[str, Any]
    cpu_s: float = 0.0
    error: str = ""

    @property
    def verdict(self) -> str:
        """That of ``rcusim explore``, or that there is none."""
        return str(self.told["verdict"]) if self.told else ERROR

    @property
    def clean(self) -> bool:
        """Whether nothing was found, and nothing failed."""
        return self.verdict not in ("finding", ERROR)


def search(case: Case, seconds: float, *, resume: bool = False) -> Searched:
    """Search a case for at most so many seconds; `resume`: go on, those before count."""
    options = ["--strategy=dpor", f"--max-duration={seconds}", f"--out={TRACES}", "--json"]
    options += ["--resume"] if resume else []
    command = [*COMMAND, "explore", *case.options, *options]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().strip().splitlines() or ["it said nothing"]
    cpu_s = usage.ru_utime + usage.ru_stime
    if process.returncode not in EXIT_CODES.values():
        return Searched(case, {}, cpu_s, f"exit code {process.returncode}: {said[-1]}")
    return Searched(case, json.loads(printed), cpu_s)


def in_reach(searched: Searched, seconds: float) -> bool:
    """Whether so many seconds ought to do for a search that was stopped, by its estimate."""
    told = searched.told
    if searched.verdict != "inconclusive" or obstacles(told) or told["estimate"] is None:
        return False
    return bool(told["estimate"] * told["elapsed_s"] <= seconds * told["executions"])


def search_twice(case: Case, seconds: float, again: float) -> Searched:
    """Search a case; go on until `again` seconds if that ought to be enough."""
    first = search(case, seconds)
    if again <= seconds or not in_reach(first, again):
        return first
    second = search(case, again, resume=True)
    return replace(second, cpu_s=first.cpu_s + second.cpu_s)


# -- the table -------------------------------------------------------------------------------------

HEADER = {
    "workload": "---",
    "parameters": "---",
    "kernel": "---",
    "verdict": "---",
    "classes": "--:",
    "blocked": "--:",
    "seconds": "--:",
    "CPU s": "--:",
    "executions": "--:",
    "at least": "--:",
    "estimate": "---",
    "no proof, however long": "---",
}


def head() -> Iterator[str]:
    """The first two lines of the table."""
    yield _line(HEADER)
    yield _line(HEADER.values())


def line(searched: Searched) -> str:
    """A line of the table."""
    case, told = searched.case, searched.told
    kernel = [case.kernel, *(f"+{it}" for it in case.added), *(f"-{it}" for it in case.removed)]
    params = " ".join(f"{name}={value}" for name, value in case.params)
    shown = [case.workload, params, " ".join(kernel)]
    if not told:
        return _line([*shown, f"**{ERROR}**", *[""] * 7, searched.error])
    verdict = searched.verdict if searched.clean else f"**{_findings(told)}**"
    shown += [verdict, _number(told["classes"]), _number(told["blocked"])]
    shown += [f"{told['elapsed_s']:.2f}", f"{searched.cpu_s:.1f}"]
    if searched.verdict == "proved":
        return _line([*shown, *[""] * 4])
    at_least, estimate = _number(told["at_least"]), _estimate(told)
    return _line([*shown, _number(told["executions"]), at_least, estimate, obstacles(told)])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _findings(told: dict[str, Any]) -> str:
    return ", ".join(found["kind"] for found in told["findings"])


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _estimate(told: dict[str, Any]) -> str:
    """How many there are in all, and between which numbers, as far as the search says so."""
    about, low, high = (told.get(name) for name in ("estimate", "estimate_low", "estimate_high"))
    if about is None:
        return ""
    between = "" if low is None or high is None else f" ({low:.1e} to {high:.1e})"
    return f"{about:.1e}{between}"


def obstacles(told: dict[str, Any]) -> str:
    """Why no larger budget would give a proof, as far as the search says so."""
    found = []
    if told["shared_cpu"] and told["holder_waited"]:
        found.append("threads share a CPU, and a holder waits")
    found += told["doubts"]
    if told["cut"]:
        found.append(f"{told['cut']:,} executions cut at the step limit")
    return "; ".join(found)


def conclusion(done: Sequence[Searched]) -> str:
    """What the table comes to, in one line."""
    counts = dict.fromkeys(("proved", "inconclusive", "finding", ERROR), 0)
    for searched in done:
        counts[searched.verdict] += 1
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return f"{len(done)} row{'s' if len(done) != 1 else ''}: {told}."


# -- the page --------------------------------------------------------------------------------------


def circumstances(seconds: float, again: float) -> str:
    """When, where and with how much time the rows were searched."""
    cpu = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    machine = f"{os.cpu_count()} cores ({cpu[1] if cpu else platform.machine()})"
    engine = "compiled engine" if compiled() else "engine not compiled"
    today = datetime.datetime.now(tz=datetime.UTC).date()
    budget = f"at most {seconds:g} s a row"
    if again > seconds:
        budget += f", {again:g} s where the estimate promised an end by then"
    return f"{today}, {machine}, Python {platform.python_version()}, {engine}, {budget}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except OSError:
        return ""


def write(page: Path, generated: str) -> None:
    """Put the generated part between the page's markers.  SystemExit if there are none."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page}: it needs the lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{generated}\n{END}{after}", "utf-8")


def load() -> str:
    """How much was going on on the machine."""
    return f"{os.getloadavg()[0]:.1f}"


def main() -> int:
    """Search and print; 1 if a row is not clean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="budget of each row")
    parser.add_argument("--again", type=float, default=0.0, help="of those that it nearly does for")
    parser.add_argument("--only", default="", help="rows of this workload")
    parser.add_argument("--write", type=Path, help="a page to put the table into")
    options = parser.parse_args()
    chosen = [case for case in cases() if options.only in ("", case.workload)]
    if not chosen:
        raise SystemExit(f"--only {options.only}: no row has that workload")
    lines = list(head())
    print("\n".join(lines))
    done = []
    began = load()
    for case in chosen:
        done.append(search_twice(case, options.seconds, options.again))
        lines.append(line(done[-1]))
        print(lines[-1], flush=True)
    where = circumstances(options.seconds, options.again)
    summary = f"{where}; load {began} when it began, {load()} at the end.\n{conclusion(done)}"
    print(f"\n{summary}")
    if options.write is not None:
        write(options.write, f"{summary}\n\n" + "\n".join(lines))
    wrong = [searched for searched in done if not searched.clean]
    for searched in wrong:
        print(f"not clean: rcusim explore {' '.join(searched.case.options)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

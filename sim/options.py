"""The options of the commands as types (all are environment variables, too); what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.choosing import Strategy
from sim.errors import UsageError
from sim.native import compiled
from sim.record import tool_version
from sim.run import HOSTS, Host
from sim.strategies.bounded import Bounded
from sim.strategies.dfs import Dfs
from sim.strategies.dpor import Dpor
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.workload import Program, find

DEFAULT_OUT = Path(".rcusim")


def _say_version(value: object) -> None:
    if value:
        engine = "compiled" if compiled() else "as Python, which is slower: see rcusim-compile"
        typer.echo(f"rcusim {tool_version()} (engine {engine})")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version",
        help="Say which version this is, and whether its engine is compiled.",
        callback=_say_version,
        is_eager=True,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on standard output.", envvar="RCUSIM_JSON"),
]
Name = Annotated[str, typer.Argument(help="Workload: name, file path or dotted module name.")]
Kernel = Annotated[str, typer.Option(help="Kernel version to model.", envvar="RCUSIM_KERNEL")]
With = Annotated[
    list[str] | None,
    typer.Option("--with", help="Add a fix (commit id) or mutant.", envvar="RCUSIM_WITH"),
]
Without = Annotated[
    list[str] | None,
    typer.Option("--without", help="Leave a fix out.", envvar="RCUSIM_WITHOUT"),
]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", help="Parameter, as name=value.", envvar="RCUSIM_PARAM"),
]
TracePath = Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file.")]
Width = Annotated[
    int, typer.Option(min=0, help="Columns; 0: the terminal's.", envvar="RCUSIM_WIDTH")
]
Setup = Annotated[
    bool, typer.Option("--setup", help="Unfold single-threaded steps.", envvar="RCUSIM_SETUP")
]
Instead = Annotated[
    str,
    typer.Option("--workload", help="Replay this one, not the trace's.", envvar="RCUSIM_WORKLOAD"),
]
TextOnly = Annotated[
    bool,
    typer.Option("--text", help="Show the text that was executed instead.", envvar="RCUSIM_TEXT"),
]
AtStep = Annotated[
    int | None,
    typer.Option("--at", min=0, help="With --text: after this step.", envvar="RCUSIM_AT"),
]
Seed = Annotated[int, typer.Option(min=0, help="Of random choices.", envvar="RCUSIM_SEED")]
MaxSteps = Annotated[
    int,
    typer.Option(min=1, help="Operations per execution.", envvar="RCUSIM_MAX_STEPS"),
]
Out = Annotated[
    Path, typer.Option(help="Directory that traces are written to.", envvar="RCUSIM_OUT")
]
StrategyName = Annotated[
    str, typer.Option("--strategy", help="dpor, random, pct or dfs.", envvar="RCUSIM_STRATEGY")
]
MaxExecutions = Annotated[
    int | None, typer.Option(min=1, help="Budget.", envvar="RCUSIM_MAX_EXECUTIONS")
]
MaxDuration = Annotated[
    float, typer.Option(min=0, help="Budget in seconds.", envvar="RCUSIM_MAX_DURATION")
]
Preemptions = Annotated[
    int | None, typer.Option(min=0, help="Bound (dpor and dfs).", envvar="RCUSIM_PREEMPTIONS")
]
Depth = Annotated[
    int | None, typer.Option(min=1, help="Bug depth, pct only (3).", envvar="RCUSIM_DEPTH")
]
HostName = Annotated[str, typer.Option("--host", help="direct or trio.", envvar="RCUSIM_HOST")]
KeepGoing = Annotated[
    bool,
    typer.Option("--keep-going", help="Go on after a finding.", envvar="RCUSIM_KEEP_GOING"),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on where this search was left.", envvar="RCUSIM_RESUME"),
]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Processes (dpor only).", envvar="RCUSIM_JOBS"),
]
Cluster = Annotated[
    str,
    typer.Option(
        help="Dask scheduler to share the search with, or: local.", envvar="RCUSIM_CLUSTER"
    ),
]
MatrixFile = Annotated[
    Path | None,
    typer.Argument(metavar="FILE", help="A table (default: that of the package)."),
]
Only = Annotated[str, typer.Option(help="Rows of this workload.", envvar="RCUSIM_ONLY")]
Fast = Annotated[bool, typer.Option("--fast", help="Rows with fast = true.", envvar="RCUSIM_FAST")]
WritePage = Annotated[
    Path | None,
    typer.Option("--write", help="Markdown page to put the table into.", envvar="RCUSIM_WRITE"),
]


# -- what the options stand for ------------------------------------------------------------------


def program_for(
    name: str,
    kernel: str,
    with_: list[str] | None,
    without: list[str] | None,
    params: list[str] | None,
) -> Program:
    """The program that the options describe.  UsageError says what is wrong with them."""
    given: dict[str, str | int | bool] = {}
    for text in params or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--param {text}: write it as name=value")
        given[key] = value
    return find(name).prepare(given, version=kernel or None, add=with_ or (), remove=without or ())


def about(*, version: Version = False) -> None:
    """What the command takes before the name of a subcommand."""


def strategy_for(name: str, seed: int, preemptions: int | None, depth: int | None) -> Strategy:
    """The strategy of that name; UsageError for options that are not for it."""
    if depth is not None and name != "pct":
        raise UsageError(f"--depth is for --strategy pct, not {name}")
    if preemptions is not None and name not in ("dpor", "dfs"):
        raise UsageError(f"--preemptions bounds --strategy dpor and dfs, not {name}")
    if name == "dpor":
        return Dpor() if preemptions is None else Bounded(preemptions)
    if name == "random":
        return RandomWalk(seed)
    if name == "pct":
        return Pct(seed, depth or 3)
    if name == "dfs":
        return Dfs(preemptions, distinct=True)
    raise UsageError(f"--strategy {name}: choose dpor, random, pct or dfs")


def host_for(name: str) -> Host:
    """The host of that name.  UsageError lists the known ones."""
    if name not in HOSTS:
        raise UsageError(f"--host {name}: choose {' or '.join(HOSTS)}")
    return HOSTS[name]


def choices_for(text: str) -> list[int]:
    """The numbers in a text such as ``0,1,1``."""
    try:
        return [int(item) for item in text.split(",") if item.strip()]
    except ValueError:
        raise UsageError(f"--choices {text}: write numbers, as 0,1,1") from None

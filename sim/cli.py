"""The command line: ``rcusim list | explore | run | replay | show``.

Exit codes: 0 proved or replay agrees, 1 finding, 2 usage or bad input, 3 inconclusive,
4 replay diverged, 5 internal error.  Every option is also an environment variable
``RCUSIM_<OPTION>``; the command line wins.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import typer

from sim.console import (
    EXIT_CODES,
    EXIT_DIVERGED,
    EXIT_INCONCLUSIVE,
    EXIT_INTERNAL,
    EXIT_PROVED,
    EXIT_USAGE,
    ProgressLine,
    intro,
    replay_json,
    result_json,
    run_json,
    summary,
    trace_json,
)
from sim.errors import InternalError, MisuseError, NondeterminismError, UsageError
from sim.execution import DEFAULT_MAX_STEPS, Strategy
from sim.explore import BLAME, Budget, Explorer, Found, Result
from sim.record import builder, ensure_out, header_of, program_of, record, trace_path
from sim.report.columns import render_columns
from sim.report.splat import render_splat, render_splats
from sim.run import HOSTS, Host
from sim.strategies.dfs import Dfs
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.strategies.replay import Choices
from sim.threads import Running
from sim.trace.reader import read_trace
from sim.trace.replay import replay as replay_trace
from sim.workload import Program, find, known

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

DEFAULT_OUT = Path(".rcusim")
STUCK_S = 60  # a single execution that takes this long is stuck between two operations

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
Seed = Annotated[int, typer.Option(min=0, help="Of random choices.", envvar="RCUSIM_SEED")]
MaxSteps = Annotated[
    int,
    typer.Option(min=1, help="Operations per execution.", envvar="RCUSIM_MAX_STEPS"),
]
Out = Annotated[
    Path, typer.Option(help="Directory that traces are written to.", envvar="RCUSIM_OUT")
]
StrategyName = Annotated[
    str, typer.Option("--strategy", help="random, pct or dfs.", envvar="RCUSIM_STRATEGY")
]
MaxExecutions = Annotated[
    int | None, typer.Option(min=1, help="Budget.", envvar="RCUSIM_MAX_EXECUTIONS")
]
MaxDuration = Annotated[
    float, typer.Option(min=0, help="Budget in seconds.", envvar="RCUSIM_MAX_DURATION")
]
Preemptions = Annotated[
    int | None, typer.Option(min=0, help="Bound (dfs only).", envvar="RCUSIM_PREEMPTIONS")
]
Depth = Annotated[
    int | None, typer.Option(min=1, help="Bug depth, pct only (3).", envvar="RCUSIM_DEPTH")
]
HostName = Annotated[str, typer.Option("--host", help="direct or trio.", envvar="RCUSIM_HOST")]
KeepGoing = Annotated[
    bool,
    typer.Option("--keep-going", help="Go on after a finding.", envvar="RCUSIM_KEEP_GOING"),
]


@app.command("list")
def list_workloads(json_output: Json = False) -> None:
    """List the workloads that can be given by name, with their parameters."""
    workloads = known()
    if json_output:
        rows = [
            {
                "name": name,
                "summary": made.summary,
                "params": {p.name: p.default for p in made.all_parameters().values()},
            }
            for name, made in workloads.items()
        ]
        _print_json(rows)
        return
    for name, made in workloads.items():
        typer.echo(f"{name}\n    {made.summary}")
        params = " ".join(f"{p.name}={p.default}" for p in made.all_parameters().values())
        typer.echo(f"    --param {params}\n")


@app.command()
def explore(
    name: Name,
    kernel: Kernel = "",
    with_: With = None,
    without: Without = None,
    strategy: StrategyName = "random",
    seed: Seed = 0,
    max_executions: MaxExecutions = None,
    max_duration: MaxDuration = 60.0,
    max_steps: MaxSteps = DEFAULT_MAX_STEPS,
    preemptions: Preemptions = None,
    depth: Depth = None,
    param: Params = None,
    host: HostName = "direct",
    out: Out = DEFAULT_OUT,
    keep_going: KeepGoing = False,
    json_output: Json = False,
) -> None:
    """Run a workload under many interleavings; report races and write their traces."""
    program = _program(name, kernel, with_, without, param)
    budget = Budget(max_executions, max_duration, max_steps)
    drive = _host(host)
    chosen = _strategy(strategy, seed, preemptions, depth)
    ensure_out(out)
    if not json_output:
        typer.echo(intro(program, strategy, seed, budget))

    def on_found(found: Found) -> str:
        finding = found.finding
        path = trace_path(program, finding.kind, finding.title, out)
        header = header_of(program, strategy, seed, found.number)
        trace = record(program, Choices(found.choices), header, path, max_steps=max_steps)
        found_in = [(r, (r.kind, r.title, tuple(sorted(r.threads)))) for r in trace.findings]
        shown = [r for r, key in found_in if key == finding.key]
        if not shown:
            told = f"the same choices show {finding.title!r} in one run and not in another"
            raise NondeterminismError(f"{told}.  {BLAME}")
        if not json_output and finding.decides:
            typer.echo(render_splat(shown[0]))
        return str(path)

    explorer = Explorer(
        program, chosen, budget, host=drive, keep_going=keep_going, on_found=on_found
    )
    result = _explore(explorer, quiet=json_output)
    if json_output:
        options = {"strategy": strategy, "seed": seed, "max_duration_s": max_duration}
        _print_json(result_json(program, options, result))
    else:
        typer.echo("\n".join(summary(program, result)))
    raise typer.Exit(EXIT_CODES[result.verdict])


def _explore(explorer: Explorer, *, quiet: bool) -> Result:
    """Run `explorer` under a progress line; Ctrl-C ends it with what was done."""
    with ProgressLine(enabled=not quiet) as line:

        def progress(result: Result) -> None:
            _watch()
            line.show(result)

        try:
            return explorer.explore(progress)
        except KeyboardInterrupt:
            return explorer.interrupted()


@app.command()
def run(
    name: Name,
    kernel: Kernel = "",
    with_: With = None,
    without: Without = None,
    seed: Seed = 0,
    execution: Annotated[
        int, typer.Option(min=1, help="Which of the seed's.", envvar="RCUSIM_EXECUTION")
    ] = 1,
    choices: Annotated[
        str | None,
        typer.Option(help="Choices to make instead, as 0,1,1 (then 0).", envvar="RCUSIM_CHOICES"),
    ] = None,
    max_steps: MaxSteps = DEFAULT_MAX_STEPS,
    param: Params = None,
    host: HostName = "trio",
    out: Out = DEFAULT_OUT,
    json_output: Json = False,
) -> None:
    """Run a workload once, and show what each thread did."""
    program = _program(name, kernel, with_, without, param)
    drive = _host(host)
    ensure_out(out)
    if choices is None:
        strategy: Strategy = RandomWalk(seed, first=execution - 1)
        header = header_of(program, "random", seed, execution)
    else:
        strategy = Choices(_choices(choices))
        header = header_of(program, "choices", None, 1)
    strategy.begin()
    path = out / f"{program.workload.name}-run.jsonl"
    _watch()
    trace = record(program, strategy, header, path, max_steps=max_steps, host=drive)
    findings = [f for f in trace.findings if f.decides]
    verdict = "finding" if findings else "inconclusive"
    if json_output:
        _print_json(run_json(trace, verdict))
    else:
        typer.echo(render_columns(trace, width=_width()))
        if trace.findings:
            typer.echo(render_splats(trace))
        typer.echo(f"{verdict}: one execution, {len(trace.events)} steps; trace: {path}")
    raise typer.Exit(EXIT_CODES[verdict])


@app.command()
def replay(
    path: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file.")],
    host: HostName = "direct",
    name: Annotated[
        str,
        typer.Option(
            "--workload", help="Replay this one, not the trace's.", envvar="RCUSIM_WORKLOAD"
        ),
    ] = "",
    json_output: Json = False,
) -> None:
    """Make the choices of a trace again; every step must be the same, byte for byte."""
    drive = _host(host)
    trace = read_trace(path)
    _watch()
    divergence = replay_trace(trace, builder(program_of(trace, name)), drive)
    verdict = "diverged" if divergence else "agrees"
    if json_output:
        _print_json(replay_json(trace, divergence))
    elif divergence is not None:
        typer.echo(str(divergence))
    else:
        typer.echo(f"replay agrees: {len(trace.events)} steps, byte for byte")
        for finding in trace.findings:
            typer.echo(f"  {finding.title}")
    raise typer.Exit(EXIT_DIVERGED if verdict == "diverged" else EXIT_PROVED)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file.")],
    width: Annotated[
        int, typer.Option(min=0, help="Columns; 0: the terminal's.", envvar="RCUSIM_WIDTH")
    ] = 0,
    setup: Annotated[
        bool,
        typer.Option("--setup", help="Unfold single-threaded steps.", envvar="RCUSIM_SETUP"),
    ] = False,
    json_output: Json = False,
) -> None:
    """Show a trace, one column per thread, and its findings."""
    trace = read_trace(path, allow_partial=True)
    if json_output:
        _print_json(trace_json(trace))
        return
    since: Literal["all", "threads"] = "all" if setup else "threads"
    typer.echo(render_columns(trace, width=width or _width(), since=since))
    if trace.findings:
        typer.echo(render_splats(trace))


# -- what the options stand for ------------------------------------------------------------------


def _program(
    name: str,
    kernel: str,
    with_: list[str] | None,
    without: list[str] | None,
    params: list[str] | None,
) -> Program:
    given: dict[str, str | int | bool] = {}
    for text in params or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--param {text}: write it as name=value")
        given[key] = value
    return find(name).prepare(given, version=kernel or None, add=with_ or (), remove=without or ())


def _strategy(name: str, seed: int, preemptions: int | None, depth: int | None) -> Strategy:
    if depth is not None and name != "pct":
        raise UsageError(f"--depth is for --strategy pct, not {name}")
    if preemptions is not None and name != "dfs":
        raise UsageError(f"--preemptions bounds --strategy dfs, not {name}")
    if name == "random":
        return RandomWalk(seed)
    if name == "pct":
        return Pct(seed, depth or 3)
    if name == "dfs":
        return Dfs(preemptions, distinct=True)
    raise UsageError(f"--strategy {name}: choose random, pct or dfs")


def _host(name: str) -> Host:
    if name not in HOSTS:
        raise UsageError(f"--host {name}: choose {' or '.join(HOSTS)}")
    return HOSTS[name]


def _choices(text: str) -> list[int]:
    try:
        return [int(item) for item in text.split(",") if item.strip()]
    except ValueError:
        raise UsageError(f"--choices {text}: write numbers, as 0,1,1") from None


def _width() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


# -- errors become one line and an exit code -----------------------------------------------------


def main() -> NoReturn:
    """The ``rcusim`` command."""
    signal.signal(signal.SIGALRM, _stuck)
    try:
        left = app(standalone_mode=False)
        code = left if isinstance(left, int) else EXIT_PROVED
        if code > EXIT_INTERNAL:  # typer's, for Ctrl-C
            code = _fail(EXIT_INCONCLUSIVE, "interrupted")
    except typer.Exit as leave:
        code = leave.exit_code
    except (UsageError, MisuseError) as error:
        code = _fail(EXIT_USAGE, str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = _fail(EXIT_INCONCLUSIVE, "interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_INCONCLUSIVE
    except Exception as error:
        wrong_usage = getattr(error, "format_message", None)  # typer's, whichever its version
        if wrong_usage is not None:
            sys.exit(_fail(EXIT_USAGE, wrong_usage() or "see rcusim --help"))
        if os.environ.get("RCUSIM_DEBUG"):
            traceback.print_exc()
        hint = "" if isinstance(error, InternalError) else "[rcusim internal bug] "
        code = _fail(
            EXIT_INTERNAL,
            f"{hint}{type(error).__name__}: {error}\n"
            "please report it with the command; RCUSIM_DEBUG=1 shows where",
        )
    sys.exit(code)


def _watch() -> None:
    """Give the execution that begins now STUCK_S seconds."""
    signal.setitimer(signal.ITIMER_REAL, STUCK_S)


def _stuck(_signal: int, _frame: FrameType | None) -> None:
    thread = Running.thread
    cure = "make the workload smaller, or lower --max-steps"
    if thread is not None:
        cure = f"thread {thread.name} runs without reaching an operation: await one in its loop"
    raise MisuseError(f"one execution has taken {STUCK_S} s; {cure}")


def _fail(code: int, message: str) -> int:
    typer.echo(f"rcusim: {message}", err=True)
    return code

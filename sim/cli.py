"""The command line: ``rcusim list | explore | run | replay | show | matrix``.

Exit codes: 0 proved, replay agrees or matrix as expected; 1 finding, or matrix not as expected;
2 usage or bad input; 3 inconclusive or interrupted; 4 replay diverged; 5 internal error.  Every
option is also an environment variable ``RCUSIM_<OPTION>``; the command line wins.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from sim.choosing import Picks
from sim.console import (
    EXIT_CODES,
    EXIT_DIVERGED,
    EXIT_FINDING,
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
    terminal_width,
    trace_json,
    workloads_json,
)
from sim.errors import InternalError, MisuseError, NondeterminismError, UsageError
from sim.execution import DEFAULT_MAX_STEPS
from sim.explore import BLAME, Budget, Found, Result
from sim.listing import text_at
from sim.matrix import read_matrix, search, select
from sim.matrix_table import (
    check_page,
    conclusion,
    rich_table,
    row_title,
    text_table,
    write_page,
)
from sim.options import (
    DEFAULT_OUT,
    AtStep,
    Cluster,
    Depth,
    Fast,
    HostName,
    Instead,
    JobsOption,
    Json,
    KeepGoing,
    Kernel,
    MatrixFile,
    MaxDuration,
    MaxExecutions,
    MaxSteps,
    Name,
    Only,
    Out,
    Params,
    Preemptions,
    Resume,
    Seed,
    Setup,
    StrategyName,
    TextOnly,
    TracePath,
    Width,
    With,
    Without,
    WritePage,
    about,
    choices_for,
    host_for,
    program_for,
    strategy_for,
)
from sim.record import builder, ensure_out, header_of, program_of, record, trace_path
from sim.report.columns import render_columns
from sim.report.splat import render_splat, render_splats
from sim.session import Search, Sharing, searching
from sim.strategies.random_walk import RandomWalk
from sim.strategies.replay import Choices
from sim.trace.format import Trace
from sim.trace.reader import read_trace
from sim.trace.replay import replay as replay_trace
from sim.watch import watch, watched
from sim.workload import Program, known

app = typer.Typer(
    help=__doc__,
    callback=about,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("list")
def list_workloads(json_output: Json = False) -> None:
    """List the workloads that can be given by name, with their parameters."""
    rows = workloads_json(known())
    if json_output:
        return _print_json(rows)
    for row in rows:
        params = " ".join(f"{name}={default}" for name, default in row["params"].items())
        typer.echo(f"{row['name']}\n    {row['summary']}\n    --param {params}\n")


@app.command()
def explore(
    name: Name,
    kernel: Kernel = "",
    with_: With = None,
    without: Without = None,
    strategy: StrategyName = "dpor",
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
    resume: Resume = False,
    jobs: JobsOption = None,
    cluster: Cluster = "",
    json_output: Json = False,
) -> None:
    """Run a workload under many interleavings; report races and write their traces."""
    program = program_for(name, kernel, with_, without, param)
    budget = Budget(max_executions, max_duration, max_steps)
    drive = host_for(host)
    chosen = strategy_for(strategy, seed, preemptions, depth)
    ensure_out(out)
    if not json_output:
        typer.echo(intro(program, strategy, seed, budget))
    on_found = _writer(program, out, max_steps, strategy=strategy, seed=seed, told=not json_output)
    line = ProgressLine(enabled=not json_output)
    with searching(
        program,
        chosen,
        budget,
        out,
        host=drive,
        keep_going=keep_going,
        on_found=on_found,
        resume=resume,
        sharing=Sharing(jobs, cluster),
        live=line.shown,
    ) as search:
        result = _explore(search, line)
    if json_output:
        options = {"strategy": strategy, "seed": seed, "max_duration_s": max_duration}
        _print_json(result_json(program, options, result))
    else:
        typer.echo("\n".join(summary(program, result)))
    raise typer.Exit(EXIT_CODES[result.verdict])


def _writer(
    program: Program, out: Path, max_steps: int, *, strategy: str, seed: int, told: bool
) -> Callable[[Found], str]:
    """Writes the trace of a finding; if `told`, prints what was found."""

    def on_found(found: Found) -> str:
        finding = found.finding
        path = trace_path(program, finding, out)
        header = header_of(program, strategy, seed, found.number)
        trace = record(program, Choices(found.choices), header, path, max_steps=max_steps)
        found_in = [(r, (r.kind, r.title, tuple(sorted(r.threads)))) for r in trace.findings]
        shown = [r for r, key in found_in if key == finding.key]
        if not shown:
            told_twice = f"the same choices show {finding.title!r} in one run and not in another"
            raise NondeterminismError(f"{told_twice}.  {BLAME}")
        if told and finding.decides:
            typer.echo(render_splat(shown[0]))
        return str(path)

    return on_found


def _explore(search: Search, line: ProgressLine) -> Result:
    """Run `search` under a progress line; Ctrl-C ends it with what was done."""
    with line:

        def progress(result: Result) -> None:
            watch()
            line.show(result)

        try:
            return search.explore(progress)
        except KeyboardInterrupt:
            return search.interrupted()


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
    program = program_for(name, kernel, with_, without, param)
    drive = host_for(host)
    ensure_out(out)
    if choices is None:
        strategy: Picks = RandomWalk(seed, first=execution - 1)
        header = header_of(program, "random", seed, execution)
    else:
        strategy = Choices(choices_for(choices))
        header = header_of(program, "choices", None, 1)
    strategy.begin()
    path = out / f"{program.workload.name}-run.jsonl"
    watch()
    trace = record(program, strategy, header, path, max_steps=max_steps, host=drive)
    findings = [f for f in trace.findings if f.decides]
    verdict = "finding" if findings else "inconclusive"
    if json_output:
        _print_json(run_json(trace, verdict))
    else:
        typer.echo(render_columns(trace, width=terminal_width()))
        if trace.findings:
            typer.echo(render_splats(trace))
        typer.echo(f"{verdict}: one execution, {len(trace.events)} steps; trace: {path}")
    raise typer.Exit(EXIT_CODES[verdict])


@app.command()
def replay(
    path: TracePath,
    host: HostName = "direct",
    name: Instead = "",
    json_output: Json = False,
) -> None:
    """Make the choices of a trace again; every step must be the same, byte for byte."""
    drive = host_for(host)
    trace = read_trace(path)
    watch()
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
    path: TracePath,
    width: Width = 0,
    setup: Setup = False,
    text: TextOnly = False,
    at: AtStep = None,
    json_output: Json = False,
) -> None:
    """Show a trace, one column per thread, and its findings; or the text it leaves (--text)."""
    trace = read_trace(path, allow_partial=True)
    if text:
        return _show_text(trace, at, json_output=json_output)
    if at is not None:
        raise UsageError("--at says where to look with --text")
    if json_output:
        return _print_json(trace_json(trace))
    since: Literal["all", "threads"] = "all" if setup else "threads"
    typer.echo(render_columns(trace, width=width or terminal_width(), since=since))
    if trace.findings:
        typer.echo(render_splats(trace))


def _show_text(trace: Trace, at: int | None, *, json_output: bool) -> None:
    """Replay a trace, and show all text after a step of it."""
    watch()
    lines, divergence = text_at(trace, at)
    if divergence is not None:
        typer.echo(str(divergence))
        raise typer.Exit(EXIT_DIVERGED)
    if json_output:
        _print_json({"trace": trace.path, "text": lines})
    else:
        typer.echo("\n".join(lines))


@app.command()
def matrix(
    file: MatrixFile = None,
    only: Only = "",
    fast: Fast = False,
    write: WritePage = None,
    max_executions: MaxExecutions = None,
    seed: Seed = 0,
    json_output: Json = False,
) -> None:
    """Search every row of a table of workloads and kernels; compare with what it expects."""
    if write is not None:
        if only or fast:
            raise UsageError("--write is for the whole table: leave --only and --fast out")
        check_page(write)
    rows = select(read_matrix(file), only, fast=fast)
    outcomes = []
    with Console(stderr=True, quiet=json_output).status("") as line:
        try:
            for row in rows:
                line.update(Text(row_title(row)))
                outcomes.append(search(row, seed, max_executions, watch))
        except KeyboardInterrupt:
            pass
    said = conclusion(outcomes, len(rows))
    console = Console()
    if json_output:
        _print_json({"seed": seed, "result": said, "rows": [done.as_json() for done in outcomes]})
    elif console.is_terminal:
        console.print(rich_table(outcomes))
        typer.echo(said)
    else:
        typer.echo(f"{text_table(outcomes)}\n\n{said}")
    if len(outcomes) < len(rows):
        raise typer.Exit(_fail(EXIT_INCONCLUSIVE, "interrupted"))
    if write is not None:
        write_page(write, outcomes)
    wrong = any(outcome.unexpected for outcome in outcomes)
    raise typer.Exit(EXIT_FINDING if wrong else EXIT_PROVED)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


# -- errors become one line and an exit code -----------------------------------------------------


def main() -> NoReturn:
    """The ``rcusim`` command."""
    watched()
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


def _fail(code: int, message: str) -> int:
    typer.echo(f"rcusim: {message}", err=True)
    return code

"""From a run to a trace file and back: recorded runs, and programs rebuilt from a header."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sim.choosing import Picks
from sim.errors import UsageError
from sim.events import Finding
from sim.execution import DEFAULT_MAX_STEPS, Execution, Observer
from sim.hosts import direct
from sim.run import Host, build
from sim.trace.format import Header, Trace
from sim.trace.reader import read_trace
from sim.trace.writer import Build, recording
from sim.workload import Program, find


def tool_version() -> str:
    """The installed version of rcusim; ``unknown`` if it is not installed."""
    try:
        return version("rcusim")
    except PackageNotFoundError:
        return "unknown"


def header_of(program: Program, strategy: str, seed: int | None, execution: int) -> Header:
    """The header of a run of `program`."""
    return Header(
        workload=program.workload.name,
        source=program.workload.source,
        parameters=dict(program.params),
        environment=dict(program.machine.environment),
        strategy=strategy,
        seed=seed,
        execution=execution,
        digest=program.digest,
        tool=tool_version(),
        python=platform.python_version(),
    )


def builder(program: Program, max_steps: int = DEFAULT_MAX_STEPS) -> Build:
    """Makes recorded executions of `program`: with stacks, and with awaits audited."""

    def make(strategy: Picks, observer: Observer) -> Execution:
        execution, _ = build(
            program, strategy, observer=observer, stacks=True, audit=True, max_steps=max_steps
        )
        return execution

    return make


def record(
    program: Program,
    strategy: Picks,
    header: Header,
    path: Path,
    *,
    max_steps: int = DEFAULT_MAX_STEPS,
    host: Host = direct.run,
) -> Trace:
    """Run `program` once and write its trace to `path`; the trace as read back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as file,
        recording(file, header, builder(program, max_steps), strategy) as execution,
    ):
        host(execution)
    return read_trace(path)


def trace_path(program: Program, finding: Finding, out: Path) -> Path:
    """Where the trace of a finding goes: the same finding, the same name."""
    params = " ".join(f"{k}={v}" for k, v in sorted(program.params.items()))
    model = program.machine.environment.get("model", "")
    text = f"{finding.title}|{params}|{model}|{' '.join(sorted(finding.threads))}"
    short = hashlib.sha256(text.encode()).hexdigest()[:8]
    machine = f"-{program.machine.version}" if program.machine.version else ""
    return out / f"{program.workload.name}{machine}-{finding.kind}-{short}.jsonl"


def ensure_out(out: Path) -> None:
    """Make the directory for traces; a new one, and a hidden one, gets its own .gitignore."""
    try:
        own = not out.exists() or out.name.startswith(".")
        out.mkdir(parents=True, exist_ok=True)
        if own and not (out / ".gitignore").exists():
            (out / ".gitignore").write_text("*\n")
    except OSError as error:
        problem = "not a directory" if out.is_file() else error.strerror
        raise UsageError(f"--out {out}: {problem}") from None


def _source(trace: Trace) -> str:
    """Where the workload was found; a file also where it is beside the trace, or one above."""
    source = trace.header.source
    if source.endswith(".py") and not Path(source).is_file():
        beside = Path(trace.path).resolve().parent
        for folder in (beside, beside.parent):
            if (folder / source).is_file():
                return str(folder / source)
    return source


def program_of(trace: Trace, name: str = "") -> Program:
    """The program that a trace is of, on the model as it is now.

    name  of the workload (default: what the trace says)

    Raises UsageError if its workload, a parameter or a fix does not exist (any more).
    """
    header = trace.header
    try:
        workload = find(name or _source(trace) or header.workload)
        return workload.restore(header.parameters, header.environment)
    except UsageError as error:
        raise UsageError(f"{trace.path}: {error} (--workload names another)") from None

"""A slice of a shared search: what one process does with one unit before it comes back.

Whatever goes in or out is plain data, so that any `concurrent.futures.Executor` will do.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from functools import cache
from typing import Final, final

from sim.events import Finding
from sim.explore import Explorer
from sim.strategies.dpor import Dpor
from sim.strategies.steps import Packed
from sim.totals import COMPLETE, Budget, Predicted, Result, plain
from sim.watch import rest, watch
from sim.workload import Program, find

_LOCK: Final = threading.Lock()  # an execution has its process to itself


@final
@dataclass(frozen=True)
class Limits:
    """How far a slice goes: executions, seconds, operations per execution.

    keep_going  also behind a finding
    before      how many executions of the whole search have been run elsewhere
    """

    executions: int
    seconds: float
    steps: int
    keep_going: bool
    before: int


@final
@dataclass
class Slice:
    """What came of a slice.

    result     counts; not: findings
    findings   each with the choices that lead to it, and in which execution of the slice it was
    predicted  use-after-frees, with the choices before the access
    left       what was not come to (`Dpor.packed`)
    """

    result: Result
    findings: list[tuple[Finding, tuple[int, ...], int]]
    predicted: list[tuple[Predicted, tuple[int, ...]]]
    left: Packed


def spec_of(program: Program) -> str:
    """What :func:`run_slice` needs to know about a program."""
    workload = program.workload
    name = workload.source or workload.name
    spec = [name, dict(program.params), dict(program.machine.environment), program.digest]
    return json.dumps(spec)


@cache
def _program(spec: str) -> Program:
    name, params, environment, digest = json.loads(spec)
    program = find(name).restore(params, environment)
    if program.digest != digest:
        raise RuntimeError(f"a worker has another {name}, or another model, than this process")
    return program


def run_slice(spec: str, packed: Packed, limits: Limits) -> Slice:
    """Explore a unit as far as the limits allow."""
    with _LOCK:
        try:
            return explore_slice(_program(spec), packed, limits)
        finally:
            rest()


def explore_slice(program: Program, packed: Packed, limits: Limits) -> Slice:
    """The same, of a program that is at hand."""
    strategy = Dpor(packed)
    explorer = Explorer(
        program,
        strategy,
        Budget(limits.executions, limits.seconds, limits.steps),
        keep_going=limits.keep_going,
        before=limits.before,
        pursue=False,
    )
    result = explorer.explore(watch)
    if result.stopped != COMPLETE:
        strategy.begin()  # plans what the last execution leads to
    found = [*result.findings, *result.races]
    counts = Result(
        executions=result.executions,
        cut=result.cut,
        redundant=result.redundant,
        fatal=result.fatal,
        steps=result.steps,
        blocked=result.blocked,
        joint_waits=strategy.joint_waits,
        shared_cpu=result.shared_cpu,
        holder_waited=result.holder_waited,
        doubts=dict(result.doubts),
        remarks=dict(result.remarks),
    )
    for values, n in result.outcomes.items():
        counts.outcomes[plain(values)] += n
    findings = [(one.finding, one.choices, one.number) for one in found]
    return Slice(counts, findings, explorer.predicted, strategy.packed())

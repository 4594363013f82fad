"""Optimal DPOR held against brute force: :func:`difference`.

Both searches run a program to the end, findings or not.  They have to see the same outcomes (final
memory, results of all steps, how it ended), the same findings and the same classes of executions
(`tests.sim.classes.order`), and DPOR has to run one execution of every class and begin none in
vain.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.choosing import Strategy
from sim.detectors import standard_detectors
from sim.detectors.data_race import DATA_RACE
from sim.errors import NondeterminismError
from sim.events import Detector, Finding
from sim.execution import STOPPED
from sim.memory import Memory
from sim.strategies.dfs import Dfs
from sim.strategies.dpor import Dpor
from tests.programs.code import Program
from tests.programs.running import Outcome, TooMany, execute
from tests.sim.classes import Order, order, visible

LIMIT = 300  # interleavings; a program with more is not tried
SAMPLE = 30  # executions after which brute force may see that there will be far too many

Detectors = Callable[[Memory], Sequence[Detector]]


@dataclass
class Searched:
    """What a search came to.

    classes  how many executions there were of each; equivalent executions have one outcome
    findings the keys of all
    cut      whether a finding ended an execution
    blocked  executions that were begun in vain
    """

    classes: Counter[tuple[Outcome, Order]] = field(default_factory=Counter)
    findings: set[Any] = field(default_factory=set)
    cut: bool = False
    blocked: int = 0

    @property
    def outcomes(self) -> set[Outcome]:
        return {outcome for outcome, _ in self.classes}

    @property
    def executions(self) -> int:
        return self.classes.total()


def search(
    program: Program, strategy: Strategy, detectors: Detectors | None, most: int
) -> Searched:
    """Run all executions that `strategy` wants to.  Raises TooMany beyond `most`."""
    found = Searched()
    while strategy.begin():
        done = found.executions
        about = getattr(strategy, "estimate", lambda: None)() if done == SAMPLE else None
        if done == most or (about is not None and about > 3 * most):
            raise TooMany(f"more than {most} executions")
        run = execute(program, strategy, detectors)
        found.classes[run.outcome, order(visible(run.events))] += 1
        found.findings |= {_key(finding) for finding in run.execution.findings}
        found.cut |= run.execution.state is STOPPED
    assert getattr(strategy, "complete", False)
    found.blocked = getattr(strategy, "blocked", 0)
    return found


def _key(finding: Finding) -> tuple[Any, ...]:
    """What a finding is, in all executions of a class.

    A data race without the threads: of several pairs of threads that race in one pair of functions
    `DataRace` reports the first in each execution, and equivalent executions have different first
    ones.
    """
    return finding.key[:2] if finding.kind == DATA_RACE else finding.key


def difference(program: Program, limit: int = LIMIT) -> str:
    """How DPOR differs from brute force; empty: not at all.  Raises TooMany beyond `limit`.

    With detectors; and without, where that makes a difference: no finding ends an execution then.
    """
    wanted = search(program, Dfs(), standard_detectors, limit)
    told = _difference(program, standard_detectors, wanted)
    if wanted.cut and not told:
        told = _difference(program, None, search(program, Dfs(), None, limit))
    return told


def _difference(program: Program, detectors: Detectors | None, wanted: Searched) -> str:
    classes = len(wanted.classes)
    try:
        found = search(program, Dpor(), detectors, wanted.executions + 1)
    except TooMany:
        return f"more executions than the {wanted.executions} interleavings"
    except NondeterminismError as error:
        return f"the search has lost its way: {error}"
    if found.outcomes != wanted.outcomes:
        return f"{len(found.outcomes)} of {len(wanted.outcomes)} outcomes"
    if found.findings != wanted.findings:
        return f"findings {sorted(found.findings)}, not {sorted(wanted.findings)}"
    if found.classes.keys() != wanted.classes.keys():
        return f"{len(found.classes.keys() & wanted.classes.keys())} of {classes} classes"
    if found.executions != classes:
        return f"{found.executions} executions of {classes} classes"
    return f"{found.blocked} executions begun in vain" if found.blocked else ""

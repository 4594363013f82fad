"""Optimal DPOR held against brute force: :func:`difference`.

Both searches run a program to the end, findings or not.  They have to see the same outcomes (final
memory, results of all steps, how it ended), the same findings and the same classes of executions
(`tests.sim.classes.order`), and DPOR has to run one execution of every class and begin none in
vain.  Of executions that a fatal finding ends, only what happens before that is compared, and there
may be several of a class; so there may if a thread waits for several things at once.
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
from sim.threads import Thread
from tests.programs.code import Choose, Program, Risk, has
from tests.programs.running import ENGINE, Outcome, TooMany, execute, histories
from tests.sim.classes import Order, order, visible, way_to_the_end

LIMIT = 300  # interleavings; a program with more is not tried
SAMPLE = 30  # executions after which brute force may see that there will be far too many

Detectors = Callable[[Memory], Sequence[Detector]]


class Stepwise:
    """Brute force for which a choice of a value is a step of its own, as it is for DPOR.

    That matters where the choice may be fatal: what others do comes before it, too.
    """

    kinds = None

    def __init__(self) -> None:
        self._dfs = Dfs()
        self.begin = self._dfs.begin
        self.choose = self._dfs.choose
        self.observe = self._dfs.observe
        self.estimate = self._dfs.estimate

    @property
    def complete(self) -> bool:
        return self._dfs.complete

    def select(
        self, alive: Sequence[Thread], able: Callable[[Thread], bool], last: Thread | None
    ) -> Thread | None:
        enabled = [thread for thread in alive if able(thread)]
        return (
            enabled[self._dfs.pick(enabled, last) if len(enabled) > 1 else 0] if enabled else None
        )

    def ended(self, threads: Sequence[Thread], *, fatal: bool) -> None:
        pass


@dataclass
class Searched:
    """What a search came to.

    classes  how many executions there were of each; equivalent executions have one outcome
    findings the keys of all
    fatal    the same of executions that a finding ended: what the threads saw on the way to it
    blocked  executions that were begun in vain
    repeats  whether there may be several of a class
    shared   whether threads shared a CPU: then there may even be more than interleavings
    """

    classes: Counter[tuple[Outcome, Order]] = field(default_factory=Counter)
    fatal: Counter[tuple[Any, Order]] = field(default_factory=Counter)
    findings: set[Any] = field(default_factory=set)
    blocked: int = 0
    repeats: bool = False
    shared: bool = False

    @property
    def outcomes(self) -> set[Outcome]:
        return {outcome for outcome, _ in self.classes}

    @property
    def executions(self) -> int:
        return self.classes.total() + self.fatal.total()


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
        found.shared |= run.execution.threads.shared_cpu
        found.findings |= {_key(finding) for finding in run.execution.findings}
        if run.execution.state is STOPPED and run.events[-1].op.kind not in ENGINE:
            events = way_to_the_end(run.events)
            found.fatal[histories(events), order(visible(events))] += 1
        else:
            found.classes[run.outcome, order(visible(run.events))] += 1
    assert getattr(strategy, "complete", False)
    found.blocked = getattr(strategy, "blocked", 0)
    found.repeats = getattr(strategy, "joint_waits", False)
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
    if wanted.fatal and any(has(code, Choose) or has(code, Risk) for code in program.threads):
        wanted = search(program, Stepwise(), standard_detectors, limit)
    told = _difference(program, standard_detectors, wanted)
    if wanted.fatal and not told:
        told = _difference(program, None, search(program, Dfs(), None, limit))
    return told


def _difference(program: Program, detectors: Detectors | None, wanted: Searched) -> str:
    classes = len(wanted.classes)
    try:
        found = search(program, Dpor(), detectors, 10 * wanted.executions + 1)
    except TooMany:
        return f"far more executions than the {wanted.executions} interleavings"
    except NondeterminismError as error:
        return f"the search has lost its way: {error}"
    if not found.shared and found.executions > wanted.executions:
        return f"more executions than the {wanted.executions} interleavings"
    if found.outcomes != wanted.outcomes:
        return f"{len(found.outcomes)} of {len(wanted.outcomes)} outcomes"
    if found.findings != wanted.findings:
        return f"findings {sorted(found.findings)}, not {sorted(wanted.findings)}"
    if found.classes.keys() != wanted.classes.keys():
        return f"{len(found.classes.keys() & wanted.classes.keys())} of {classes} classes"
    if found.classes.total() != classes and not found.repeats:
        return f"{found.classes.total()} executions of {classes} classes"
    if found.fatal.keys() != wanted.fatal.keys():
        both = found.fatal.keys() & wanted.fatal.keys()
        return f"{len(both)} of {len(wanted.fatal)} ways to a fatal finding"
    return f"{found.blocked} executions begun in vain" if found.blocked else ""

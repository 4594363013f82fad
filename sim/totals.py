"""What many executions add up to: counts, findings, verdict; as plain data, too.

Verdicts are honest.  *proved*: every interleaving has been run, and nothing was found.
*finding*: something was found.  *inconclusive*: everything else; running out of budget, or
having completed a bounded search, is never a pass.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, final

from sim.events import Finding
from sim.execution import CUT, DEFAULT_MAX_STEPS, DONE, REDUNDANT, STOPPED, Execution

Verdict = Literal["proved", "finding", "inconclusive"]
Predicted = tuple[str, str, str]  # kind of the object, thread that accesses it, thread that frees

TRIES: Final = 3  # directed executions per kind of predicted use-after-free
COMPLETE: Final = "every choice has been tried"
FOUND: Final = "a finding"
INTERRUPTED: Final = "Ctrl-C"
#: Of a Result.
COUNTS: Final = ("executions", "directed", "cut", "redundant", "fatal", "steps", "blocked")


@final
@dataclass(frozen=True)
class Budget:
    """When to stop: executions (None: no limit), seconds, operations per execution."""

    executions: int | None = None
    seconds: float = 60.0
    steps: int = DEFAULT_MAX_STEPS


@final
@dataclass
class Found:
    """A finding, the execution that showed it first, and where its trace was written.

    number   of the execution, counted from 1
    directed whether a directed search showed it
    probed   whether it was shown by an execution that was run to estimate how many there are, after
             that of this number
    choices  that lead to it
    within   the bound on preemptions at which a search of bounds in turn came to it, None: no such
    """

    finding: Finding
    number: int
    directed: bool
    choices: tuple[int, ...]
    trace: str = ""
    within: int | None = None
    probed: bool = False


@final
@dataclass
class Result:
    """What an exploration did and found so far.

    executions  run in all; of them: directed at a predicted finding, cut at the step budget,
                redundant (ended early, for the same had been run before), ended by a finding
                (fatal, without those that were directed)
    blocked     executions that a complete search without redundancy has begun in vain
    outcomes    how often each combination of `outcome` values was seen
    findings    those that decide the verdict; races: data races that are legal by design
    predicted   use-after-frees predicted but not witnessed, by title: not part of the verdict
    optimal     whether the strategy runs one execution of every class, and no other
    complete    whether every interleaving (within the strategy's bound) has been run
    bound       on preemptions, None: none; all executions with `finished` of them have been run
    stopped     what ended the search
    joint_waits whether a thread waited for several things: then some classes may be run repeatedly
    shared_cpu  whether threads shared a CPU; holder_waited: whether one that held its CPU has stood
                before a step that may have to wait.  With both, not all is explored (`ops.LOCAL`)
    doubts      why a complete search would be no proof (what detectors count, and no order tells)
    remarks     what the machine says about itself (functions that the workload has replaced)
    estimate    of the number of executions in all, None: there is none; a complete search that was
                stopped has one between `estimate_low` and `estimate_high`, and knows how many there
                are for certain: `at_least`
    """

    executions: int = 0
    directed: int = 0
    cut: int = 0
    redundant: int = 0
    fatal: int = 0
    steps: int = 0
    elapsed_s: float = 0.0
    outcomes: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    findings: list[Found] = field(default_factory=list)
    races: list[Found] = field(default_factory=list)
    predicted: list[str] = field(default_factory=list)
    blocked: int = 0
    optimal: bool = False
    complete: bool = False
    bound: int | None = None
    finished: int | None = None
    stopped: str = ""
    joint_waits: bool = False
    shared_cpu: bool = False
    holder_waited: bool = False
    doubts: dict[str, None] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    estimate: float | None = None
    estimate_low: float | None = None
    estimate_high: float | None = None
    at_least: int | None = None

    @property
    def classes(self) -> int | None:
        """How many there are, if a search that is complete and runs each once has counted them.

        Of executions that no finding has ended: the same way to one may have been run repeatedly.
        """
        if not self.exhausted or not self.optimal or self.joint_waits:
            return None
        return self.distinct

    @property
    def distinct(self) -> int:
        """How many classes have been run so far, if each is run once."""
        return self.executions - self.directed - self.redundant - self.fatal

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left: what others would do in executions that were cut is not known.

        Brute force tries them all the same, within the limit.
        """
        reduced = self.optimal or self.finished is not None
        return self.complete and not (self.cut and reduced)

    @property
    def reasons(self) -> list[str]:
        """Why the search would be no proof if it were complete."""
        kept_off = (
            "a thread waited while it held a CPU that others share, and that it keeps one from "
            "what it waits for is not modelled"
        )
        return [*([kept_off] if self.shared_cpu and self.holder_waited else []), *self.doubts]

    @property
    def verdict(self) -> Verdict:
        """See the module's docstring."""
        if self.findings:
            return "finding"
        if self.complete and self.bound is None and not self.cut and not self.reasons:
            return "proved"
        return "inconclusive"


@final
class Totals:
    """Adds executions up to a result.

    on_found  called once for each distinct finding, to write its trace; returns the path
    """

    def __init__(
        self,
        budget: Budget,
        *,
        bound: int | None = None,
        optimal: bool = False,
        keep_going: bool = False,
        on_found: Callable[[Found], str] | None = None,
    ) -> None:
        self.result = Result(bound=bound, optimal=optimal)
        self._budget: Final = budget
        self._keep_going: Final = keep_going
        self._on_found: Final = on_found
        self._tried: Counter[Predicted] = Counter()
        self._witnessed: dict[Predicted, None] = {}
        self._before = 0.0  # seconds of earlier runs
        self._started = 0.0  # when this run began; 0: it has not, or is over

    # -- time and budget -------------------------------------------------------------------------

    def start(self) -> None:
        """The clock of this run begins."""
        self._before = self.result.elapsed_s
        self._started = time.monotonic()

    def tick(self) -> float:
        """The seconds so far, those of earlier runs included."""
        if self._started:
            self.result.elapsed_s = self._before + time.monotonic() - self._started
        return self.result.elapsed_s

    def over_budget(self) -> str:
        """What of the budget has run out; empty: nothing."""
        executions = self._budget.executions
        if executions is not None and self.result.executions >= executions:
            return f"the budget of {executions} execution{'s' if executions != 1 else ''}"
        if self.tick() >= self._budget.seconds:
            return f"the budget of {self._budget.seconds:g} s"
        return ""

    def left(self) -> tuple[int | None, float]:
        """Executions and seconds that the budget has left."""
        executions = self._budget.executions
        left = None if executions is None else executions - self.result.executions
        return left, self._budget.seconds - self.tick()

    # -- one execution, or many --------------------------------------------------------------------

    def count(self, execution: Execution, blocked: int) -> None:
        """An execution is over; `blocked`: how many the strategy has begun in vain so far."""
        result = self.result
        result.executions += 1
        result.steps += execution.step
        result.remarks = execution.memory.remarks
        result.shared_cpu |= execution.threads.shared_cpu
        result.holder_waited |= execution.threads.holder_waited
        result.doubts.update(execution.memory.doubts)
        self.tick()
        if execution.state is CUT:
            result.cut += 1
        elif execution.state is STOPPED:
            result.fatal += 1
        elif execution.state is REDUNDANT:
            result.redundant += 1
            result.blocked = blocked
        elif execution.state is DONE and execution.outcomes:
            result.outcomes[tuple(value for _, value in sorted(execution.outcomes, key=_by))] += 1

    def add(self, part: Result) -> None:
        """Count what was done elsewhere, all but its findings."""
        result = self.result
        for name in COUNTS:
            setattr(result, name, getattr(result, name) + getattr(part, name))
        result.outcomes.update(part.outcomes)
        result.joint_waits |= part.joint_waits
        result.shared_cpu |= part.shared_cpu
        result.holder_waited |= part.holder_waited
        result.doubts.update(part.doubts)
        result.remarks = part.remarks or result.remarks
        self.tick()

    def new(self, findings: Iterable[Finding]) -> list[Finding]:
        """Those that have not been found before, each once."""
        known = [found.finding.key for found in (*self.result.findings, *self.result.races)]
        fresh = {finding.key: finding for finding in reversed(list(findings))}
        return [finding for key, finding in reversed(fresh.items()) if key not in known]

    def found(
        self,
        finding: Finding,
        choices: Sequence[int],
        *,
        directed: bool,
        within: int | None = None,
        probed: bool = False,
        number: int | None = None,
    ) -> None:
        """A new finding, the choices that lead to it, in which execution: None: the last."""
        number = self.result.executions if number is None else number
        found = Found(finding, number, directed, tuple(choices), within=within, probed=probed)
        if self._on_found is not None:
            found.trace = self._on_found(found)
        (self.result.findings if finding.decides else self.result.races).append(found)
        if finding.decides and not self._keep_going:
            self.result.stopped = FOUND

    # -- predictions -------------------------------------------------------------------------------

    def to_try(self, key: Predicted) -> bool:
        """Whether to search for a predicted use-after-free (once more); that counts as a try."""
        if self._tried[key] >= TRIES or key in self._witnessed:
            return False
        self._tried[key] += 1
        return True

    def tried(self, key: Predicted, run: Execution) -> None:
        """A directed execution is over; it has been counted."""
        self.result.directed += 1
        self.result.fatal -= run.state is STOPPED
        if any(finding.kind.startswith("use-after-free") for finding in run.findings):
            self._witnessed[key] = None

    def finish(self) -> None:
        """The search is over, for now."""
        self.tick()
        self._started = 0.0
        if self.result.stopped == COMPLETE:
            self.result.estimate = self.result.at_least = None
            self.result.estimate_low = self.result.estimate_high = None
        bounded = self.result.bound is not None  # then nobody has searched for them
        seen = any(one.finding.kind.startswith("use-after-free") for one in self.result.findings)
        if not (bounded and seen) and (bounded or not self.result.complete):
            self.result.predicted = [
                f"use-after-free of a {kind} by {access}, freed by {free}"
                for kind, access, free in sorted(self._tried.keys() - self._witnessed.keys())
            ]

    # -- as plain data -----------------------------------------------------------------------------

    def packed(self) -> dict[str, Any]:
        """All of it as plain data."""
        self.tick()
        result = self.result
        return {
            **{name: getattr(result, name) for name in (*COUNTS, "elapsed_s", "complete")},
            "stopped": result.stopped,
            "joint_waits": result.joint_waits,
            "shared_cpu": result.shared_cpu,
            "holder_waited": result.holder_waited,
            "doubts": result.doubts,
            "remarks": dict(result.remarks),
            "predicted": result.predicted,
            "outcomes": [[plain(values), n] for values, n in result.outcomes.items()],
            "findings": [asdict(found) for found in result.findings],
            "races": [asdict(found) for found in result.races],
            "tried": [[*key, n] for key, n in self._tried.items()],
            "witnessed": [list(key) for key in self._witnessed],
        }

    def restore(self, packed: dict[str, Any]) -> None:
        """Go on from what was :meth:`packed`."""
        given = dict(packed)
        self._tried = Counter({(a, b, c): n for a, b, c, n in given.pop("tried")})
        self._witnessed = dict.fromkeys((a, b, c) for a, b, c in given.pop("witnessed"))
        outcomes = Counter({_hashable(values): n for values, n in given.pop("outcomes")})
        findings, races = (
            [_found(one) for one in given.pop(name)] for name in ("findings", "races")
        )
        self.result = Result(
            bound=self.result.bound,
            optimal=self.result.optimal,
            outcomes=outcomes,
            findings=findings,
            races=races,
            **given,
        )


def plain(value: Any) -> Any:
    """An outcome of numbers, text, None and tuples; what else there is as text."""
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if value is None or isinstance(value, bool | str):
        return value
    return int(value) if isinstance(value, int) else str(value)


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value


def _found(packed: dict[str, Any]) -> Found:
    finding = dict(packed["finding"])
    finding["threads"] = tuple(finding["threads"])
    finding["details"] = ()
    rest = {key: value for key, value in packed.items() if key not in ("finding", "choices")}
    return Found(Finding(**finding), choices=tuple(packed["choices"]), **rest)


def _by(outcome: tuple[str, Any]) -> str:
    return outcome[0]

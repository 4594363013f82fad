"""Many runs of one program: budget, directed searches, findings, verdict.

Verdicts are honest.  *proved*: every interleaving has been run, and nothing was found.
*finding*: something was found.  *inconclusive*: everything else; running out of budget, or
having completed a bounded search, is never a pass.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, final

from sim.choosing import Strategy
from sim.detectors import Prediction
from sim.errors import MisuseError, NondeterminismError, UsageError
from sim.events import Finding
from sim.execution import CUT, DEFAULT_MAX_STEPS, DONE, REDUNDANT, Execution
from sim.hosts import direct
from sim.run import Fingerprint, Host, Rewound, Run, fingerprint, run_once
from sim.strategies.bounded import Bounded
from sim.strategies.dpor import Dpor
from sim.strategies.replay import Choices, Follow, Hold
from sim.workload import Program

Verdict = Literal["proved", "finding", "inconclusive"]

BLAME: Final = (
    "Something outside the choices decides: set iteration, a global, the clock, a random number, "
    "state kept between executions"
)
ALL_TRIED: Final = "every choice has been tried"
PROGRESS: Final = 16  # executions between two calls of what shows the progress
TRIES: Final = 3  # directed executions per kind of predicted use-after-free


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
    choices  that lead to it
    within   the bound on preemptions at which a search of bounds in turn came to it, None: no such
    """

    finding: Finding
    number: int
    directed: bool
    choices: tuple[int, ...]
    trace: str = ""
    within: int | None = None


@final
@dataclass
class Result:
    """What an exploration did and found so far.

    executions  run in all; of them: directed at a predicted finding, cut at the step budget,
                redundant (ended early, for the same had been run before)
    blocked     executions that a complete search without redundancy has begun in vain
    outcomes    how often each combination of `outcome` values was seen
    findings    those that decide the verdict; races: data races that are legal by design
    predicted   use-after-frees predicted but not witnessed, by title: not part of the verdict
    optimal     whether the strategy runs one execution of every class, and no other
    complete    whether every interleaving (within the strategy's bound) has been run
    bound       on preemptions, None: none; all executions with `finished` of them have been run
    stopped     what ended the search
    shared_cpu  whether threads shared a CPU: not all of what that can do is explored (`ops.LOCAL`)
    remarks     what the machine says about itself (functions that the workload has replaced)
    estimate    of the number of executions in all, a guess; None if the strategy knows none
    at_least    how many there are for certain, None likewise
    """

    executions: int = 0
    directed: int = 0
    cut: int = 0
    redundant: int = 0
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
    shared_cpu: bool = False
    remarks: dict[str, str] = field(default_factory=dict)
    estimate: float | None = None
    at_least: int | None = None

    @property
    def classes(self) -> int | None:
        """How many there are, if a search that is complete and runs each once has counted them."""
        if not self.complete or not self.optimal:
            return None
        return self.executions - self.directed - self.redundant

    @property
    def verdict(self) -> Verdict:
        """See the module's docstring."""
        if self.findings:
            return "finding"
        if self.complete and self.bound is None and not self.cut and not self.shared_cpu:
            return "proved"
        return "inconclusive"


def check_determinism(program: Program, strategy: Strategy, budget: Budget) -> None:
    """Run the strategy's first execution, and repeat it.  Raises as :func:`check_repeats`."""
    strategy.begin()
    run = run_once(program, strategy, max_steps=budget.steps)
    check_repeats(program, run.execution.choices, budget.steps)


def check_repeats(program: Program, choices: Sequence[int], max_steps: int) -> None:
    """Make the same choices twice; every step must be the same, and every operation awaited.

    Raises MisuseError, or NondeterminismError naming the first step that differs.
    """
    first = _fingerprints(program, choices, max_steps)
    again = _fingerprints(program, choices, max_steps)
    for step, (one, other) in enumerate(zip(first, again, strict=False)):
        if one != other:
            raise NondeterminismError(
                f"the same choices gave different steps: at step {step} thread {one[0]} did "
                f"{one[1]} at {one[2]:#x} = {one[3]}, then thread {other[0]} did {other[1]} at "
                f"{other[2]:#x} = {other[3]}.  {BLAME}"
            )
    if len(first) != len(again):
        raise NondeterminismError(
            f"the same choices gave {len(first)} steps, then {len(again)}.  {BLAME}"
        )


def _fingerprints(program: Program, choices: Sequence[int], max_steps: int) -> list[Fingerprint]:
    """What happens under these choices; with an eye on what is not awaited."""
    steps: list[Fingerprint] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run_once(
                program,
                Choices(choices),
                observer=lambda event: steps.append(fingerprint(event)),
                audit=True,
                max_steps=max_steps,
            )
        except UsageError as error:
            raise NondeterminismError(f"the same choices do not fit: {error}.  {BLAME}") from None
    for warning in caught:
        if "was never awaited" in str(warning.message):
            raise MisuseError(f"{warning.message}: write `await` before the call")
    return steps


@final
class Explorer:
    """Runs a program under a strategy until a finding, the end of the search or the budget.

    on_found  called once for each distinct finding, to write its trace; returns the path
    """

    def __init__(
        self,
        program: Program,
        strategy: Strategy,
        budget: Budget,
        *,
        host: Host = direct.run,
        keep_going: bool = False,
        on_found: Callable[[Found], str] | None = None,
    ) -> None:
        self.result: Final = Result(
            bound=getattr(strategy, "bound", None), optimal=isinstance(strategy, Dpor)
        )
        self._program: Final = program
        self._strategy: Final = strategy
        self._budget: Final = budget
        self._host: Final = host
        self._keep_going: Final = keep_going
        self._on_found: Final = on_found
        self._rewound: Final = (
            Rewound(program, strategy, budget.steps)
            if isinstance(strategy, Dpor | Bounded)
            and host is direct.run
            and program.machine.rewinds
            else None
        )
        self._progress: Callable[[Result], None] | None = None
        self._seen: Final[set[tuple[str, str, tuple[str, ...]]]] = set()
        self._tried: Final[Counter[tuple[str, str, str]]] = Counter()
        self._witnessed: Final[set[tuple[str, str, str]]] = set()
        self._started = 0.0

    def explore(self, progress: Callable[[Result], None] | None = None) -> Result:
        """Run until done; `progress` is called every few executions."""
        self._progress = progress
        self._started = time.monotonic()
        result = self.result
        while not result.stopped:
            if not self._strategy.begin():
                result.complete = getattr(self._strategy, "complete", False)
                result.stopped = ALL_TRIED
                result.estimate = result.at_least = None
                break
            run = self._next()
            self._count(run.execution)
            if result.executions & (result.executions - 1) == 0:  # the 1st, 2nd, 4th, 8th ...
                choices = self._spelt_out(run).execution.choices
                check_repeats(self._program, choices, self._budget.steps)
            self._collect(run, directed=False)
            for prediction in run.predictions:
                result.stopped = result.stopped or self._over_budget()
                if not result.stopped:
                    self._pursue(run, prediction)
            result.stopped = result.stopped or self._over_budget()
        self._finish()
        return result

    def interrupted(self) -> Result:
        """The result so far, of an exploration that Ctrl-C has stopped."""
        self.result.stopped = "Ctrl-C"
        self._finish()
        return self.result

    def _next(self) -> Run:
        """The execution that the strategy has begun."""
        return self._run(self._strategy) if self._rewound is None else self._rewound.next()

    def _spelt_out(self, run: Run) -> Run:
        """The same execution from its beginning, with all choices that were made.

        Raises NondeterminismError if it is not the same.
        """
        if not hasattr(self._strategy, "select"):
            return run
        follow = Follow(*run.execution.followed)
        follow.begin()
        spelt = self._run(follow)
        one, other = ([f.key for f in r.execution.findings] for r in (run, spelt))
        if one != other or run.execution.step != spelt.execution.step:
            raise NondeterminismError(
                f"going on from a common beginning gave {run.execution.step} steps and the "
                f"findings {one}; from the start, {spelt.execution.step} and {other}.  {BLAME}"
            )
        return spelt

    def _run(self, strategy: Strategy) -> Run:
        return run_once(self._program, strategy, host=self._host, max_steps=self._budget.steps)

    def _count(self, execution: Execution) -> None:
        result = self.result
        result.executions += 1
        result.steps += execution.step
        result.remarks = execution.memory.remarks
        result.shared_cpu |= execution.threads.shared_cpu
        result.elapsed_s = time.monotonic() - self._started
        if execution.state is CUT:
            result.cut += 1
        elif execution.state is REDUNDANT:
            result.redundant += 1
            result.blocked = getattr(self._strategy, "blocked", 0)
        elif execution.state is DONE and execution.outcomes:
            result.outcomes[tuple(value for _, value in sorted(execution.outcomes, key=_by))] += 1
        if self._progress is not None and result.executions % PROGRESS == 1:
            self._look_ahead()
            self._progress(result)

    def _look_ahead(self) -> None:
        """Ask the strategy how many executions there are, while it has not tried all."""
        result = self.result
        if result.stopped == ALL_TRIED:
            return
        estimate = getattr(self._strategy, "estimate", None)
        at_least = getattr(self._strategy, "at_least", None)
        result.estimate = estimate() if estimate is not None else None
        result.at_least = at_least() if at_least is not None else None

    def _collect(self, run: Run, *, directed: bool) -> None:
        new = [f for f in run.execution.findings if f.key not in self._seen]
        choices = self._spelt_out(run).execution.choices if new and not directed else []
        for finding in new:
            if finding.key in self._seen:
                continue
            self._seen.add(finding.key)
            made = run.execution.choices if directed else choices
            found = Found(finding, self.result.executions, directed, tuple(made))
            if not directed:
                found.within = getattr(self._strategy, "within", None)
            if self._on_found is not None:
                found.trace = self._on_found(found)
            (self.result.findings if finding.decides else self.result.races).append(found)
            if finding.decides and not self._keep_going:
                self.result.stopped = "a finding"

    def _pursue(self, run: Run, prediction: Prediction) -> None:
        """Search for an execution in which the predicted access comes after the free."""
        key = (prediction.kind, prediction.access_thread, prediction.free_thread)
        if self._tried[key] >= TRIES or key in self._witnessed:
            return
        self._tried[key] += 1
        before = self._spelt_out(run).choices_before(prediction.access_step)
        strategy = Hold(before, prediction.access_thread)
        strategy.begin()
        directed = self._run(strategy)
        self.result.directed += 1
        self._count(directed.execution)
        if any(
            finding.kind.startswith("use-after-free") for finding in directed.execution.findings
        ):
            self._witnessed.add(key)
        self._collect(directed, directed=True)

    def _over_budget(self) -> str:
        budget = self._budget
        if budget.executions is not None and self.result.executions >= budget.executions:
            return f"the budget of {budget.executions} executions"
        if time.monotonic() - self._started >= budget.seconds:
            return f"the budget of {budget.seconds:g} s"
        return ""

    def _finish(self) -> None:
        if self._rewound is not None:
            self._rewound.close()
        result = self.result
        result.elapsed_s = time.monotonic() - self._started
        result.finished = getattr(self._strategy, "finished", None)
        if not result.complete:
            self._look_ahead()
            result.predicted = [
                f"use-after-free of a {kind} by {access}, freed by {free}"
                for kind, access, free in sorted(self._tried.keys() - self._witnessed)
            ]


def _by(outcome: tuple[str, Any]) -> str:
    return outcome[0]

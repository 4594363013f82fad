"""Many runs of one program: budget, directed searches, findings, verdict (see `sim.totals`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Final, Protocol, final

from sim.choosing import Strategy
from sim.detectors import Prediction
from sim.errors import MisuseError, NondeterminismError, UsageError
from sim.execution import CUT, REDUNDANT, STOPPED, Execution
from sim.hosts import direct
from sim.run import Fingerprint, Host, Rewound, Run, fingerprint, run_once
from sim.sizing import Sizing
from sim.strategies.bounded import Bounded
from sim.strategies.dpor import Dpor
from sim.strategies.plans import WHOLE
from sim.strategies.replay import Choices, Follow, Hold
from sim.strategies.steps import Packed
from sim.totals import COMPLETE, FOUND, INTERRUPTED, Budget, Found, Predicted, Result, Totals
from sim.workload import Program

__all__ = [
    "BLAME",
    "Budget",
    "Explorer",
    "Found",
    "Keep",
    "Result",
    "check_determinism",
    "check_repeats",
]

BLAME: Final = (
    "Something outside the choices decides: set iteration, a global, the clock, a random number, "
    "state kept between executions"
)
PROGRESS: Final = 16  # executions between two calls of what shows the progress


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


def rehearsed(program: Program, budget: Budget) -> Packed:
    """All of a complete search, and what is raced for in its first execution (`Dpor.packed`)."""
    strategy = Dpor()
    strategy.begin()
    run_once(program, strategy, max_steps=budget.steps)
    strategy.begin()
    return [strategy.packed()[0], WHOLE[1]]


class Keep(Protocol):
    """Keeps what is left of a search (`Dpor.packed`), so that it can be gone on with."""

    def due(self) -> bool:
        """Whether it is time to keep it again."""
        ...

    def keep(self, left: Packed | None, totals: Totals) -> None:
        """Keep it; `left` is None when the search is over for good."""
        ...


@final
class Explorer:
    """Runs a program under a strategy until a finding, the end of the search or the budget.

    totals    what it adds to (a new one: from `budget`, `keep_going` and `on_found`)
    on_found  called once for each distinct finding, to write its trace; returns the path
    keep      called between two executions, to keep what is left of the search; see `Keep`
    sizing    estimates how large the search is, between executions and when it has been stopped
    before    how many executions of the search have been run elsewhere
    pursue    whether to search for predicted use-after-frees at once; else they are in `predicted`
              with the choices before the access
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
        totals: Totals | None = None,
        keep: Keep | None = None,
        sizing: Sizing | None = None,
        before: int = 0,
        pursue: bool = True,
    ) -> None:
        bound = getattr(strategy, "bound", None)
        self.totals: Final = totals or Totals(
            budget,
            bound=bound,
            optimal=isinstance(strategy, Dpor),
            keep_going=keep_going,
            on_found=on_found,
        )
        self.predicted: Final[list[tuple[Predicted, tuple[int, ...]]]] = []
        self._program: Final = program
        self._strategy: Final = strategy
        self._budget: Final = budget
        self._host: Final = host
        self._keep: Final = keep
        self._sizing: Final = sizing
        self._before: Final = before
        self._pursues: Final = pursue and bound is None  # what it finds may need more preemptions
        self._sound = True  # whether the strategy knows what is left
        self._counted = True  # whether the execution that it has begun last is over
        self._rewound: Final = (
            Rewound(program, strategy, budget.steps)
            if isinstance(strategy, Dpor | Bounded)
            and host is direct.run
            and program.machine.rewinds
            else None
        )

    @property
    def result(self) -> Result:
        """The result so far."""
        return self.totals.result

    def explore(self, progress: Callable[[Result], None] | None = None) -> Result:
        """Run until done; `progress` is called every few executions."""
        try:
            self._search(progress)
        finally:
            if self._rewound is not None:
                self._rewound.close()
        left = self._end(progress)
        if self._keep is not None:
            over = self.result.stopped == FOUND
            self._keep.keep(None if over else left, self.totals)
        return self.result

    def _search(self, progress: Callable[[Result], None] | None) -> None:
        totals, result = self.totals, self.result
        totals.start()
        if result.executions:  # in an earlier run
            result.stopped = totals.over_budget()
        while not result.stopped:
            if not self._begin():
                self._complete()
                break
            if self._keep is not None and self._keep.due():
                self._keep.keep(self._left(), totals)
            if self._sizing is not None:
                self._sizing.remember(result.executions - result.directed, self._left)
                if self._sizing.due():
                    self._sizing.glance(self._left(), result, self.probed)
            run = self._next()
            self._counted = True
            self._count(run.execution, progress)
            n = self._before + result.executions
            power = n & (n - 1) == 0  # the 1st, 2nd, 4th, 8th ...
            if power and run.execution.state is not REDUNDANT:
                choices = self._spelt_out(run).execution.choices
                check_repeats(self._program, choices, self._budget.steps)
            self._collect(run)
            for prediction in run.predictions:
                result.stopped = result.stopped or totals.over_budget()
                if not result.stopped:
                    self._pursue(run, prediction, progress)
            result.stopped = result.stopped or totals.over_budget()

    def interrupted(self) -> Result:
        """The result so far, of an exploration that Ctrl-C has stopped."""
        self.result.stopped = INTERRUPTED
        self._end()
        return self.result

    def _begin(self) -> bool:
        """Begin the next execution, if there is one."""
        self._sound = False
        begun = self._strategy.begin()
        self._sound, self._counted = True, False
        return begun

    def _complete(self) -> None:
        self.result.complete = getattr(self._strategy, "complete", False)
        self.result.joint_waits |= getattr(self._strategy, "joint_waits", False)
        self.result.stopped = COMPLETE

    def _next(self) -> Run:
        """The execution that the strategy has begun."""
        return self._run(self._strategy) if self._rewound is None else self._rewound.next()

    def _spelt_out(self, run: Run) -> Run:
        """The same execution from its beginning, with all choices that were made.

        By a trace a thread chooses as soon as it stands before a choice.  So a finding that ends
        the execution may come earlier; and a thread that had not chosen when the execution ended
        is given some value with which the findings are the same, if there is one.

        Raises NondeterminismError if it is not the same.
        """
        if not hasattr(self._strategy, "select"):
            return run
        one = [f.key for f in run.execution.findings]
        steps = run.execution.step
        earlier = bool(run.execution.followed[1]) and run.execution.state in (STOPPED, CUT)
        otherwise = 0
        while True:
            follow = Follow(*run.execution.followed, otherwise)
            follow.begin()
            spelt = self._run(follow)
            other = [f.key for f in spelt.execution.findings]
            if one == other and (earlier or follow.needed or steps == spelt.execution.step):
                return spelt
            otherwise += 1
            if otherwise >= follow.needed:
                break
        if (earlier or follow.needed) and spelt.execution.state is run.execution.state:
            return spelt  # another finding comes first there, or the end of the budget
        raise NondeterminismError(
            f"going on from a common beginning gave {steps} steps and the "
            f"findings {one}; from the start, {spelt.execution.step} and {other}.  {BLAME}"
        )

    def _run(self, strategy: Strategy) -> Run:
        return run_once(self._program, strategy, host=self._host, max_steps=self._budget.steps)

    def _count(self, execution: Execution, progress: Callable[[Result], None] | None) -> None:
        self.totals.count(execution, getattr(self._strategy, "blocked", 0))
        self.result.joint_waits |= getattr(self._strategy, "joint_waits", False)
        if progress is not None and self.result.executions % PROGRESS == 1:
            self._look_ahead()
            progress(self.result)

    def _look_ahead(self) -> None:
        """Ask the strategy how many executions there are, if it is one that knows."""
        estimate = getattr(self._strategy, "estimate", None)
        if estimate is not None:
            self.result.estimate = estimate()

    def probed(self, run: Run) -> None:
        """Take the findings of an execution that was not run for them (`Sizing`)."""
        self._collect(run, probed=True)

    def _collect(self, run: Run, *, probed: bool = False) -> None:
        if not run.execution.findings:
            return
        new = self.totals.new(run.execution.findings)
        if not new:
            return
        spelt = self._spelt_out(run).execution
        choices = spelt.choices
        new = [one for one in new if any(one.key == other.key for other in spelt.findings)]
        within = getattr(self._strategy, "within", None)
        for finding in new or self.totals.new(spelt.findings):
            self.totals.found(finding, choices, directed=False, within=within, probed=probed)

    def _pursue(
        self, run: Run, prediction: Prediction, progress: Callable[[Result], None] | None
    ) -> None:
        """Search for an execution in which the predicted access comes after the free."""
        key = (prediction.kind, prediction.access_thread, prediction.free_thread)
        if not self.totals.to_try(key):
            return
        before = self._spelt_out(run).choices_before(prediction.access_step)
        if self._pursues:
            self.search_for(key, before, progress)
        else:
            self.predicted.append((key, before))

    def search_for(
        self,
        key: Predicted,
        before: Sequence[int],
        progress: Callable[[Result], None] | None = None,
    ) -> None:
        """Run the directed search for what was predicted after some choices."""
        strategy = Hold(before, key[1])
        strategy.begin()
        execution = self._run(strategy).execution
        self._count(execution, progress)
        self.totals.tried(key, execution)
        for finding in self.totals.new(execution.findings):
            self.totals.found(finding, execution.choices, directed=True)

    def _end(self, progress: Callable[[Result], None] | None = None) -> Packed | None:
        """The search is over for now: what is left of it, if that is of interest."""
        left = self._rest() if self._keep is not None or self._sizing is not None else None
        self.totals.finish()
        self.result.finished = getattr(self._strategy, "finished", None)
        if self.result.stopped != COMPLETE:
            self._look_ahead()
        if left is not None and self._sizing is not None:
            if progress is not None:
                progress(self.result)
            self._sizing.conclude(left, self.result, self.probed)
        return left

    def _left(self) -> Packed:
        assert isinstance(self._strategy, Dpor)
        return self._strategy.packed()

    def _rest(self) -> Packed | None:
        """What is left of the search when it has been stopped; None: nothing."""
        if self.result.stopped in (COMPLETE, FOUND) or not self._sound:
            return None
        if self._counted and not self._begin():  # plans what the last execution leads to
            self._complete()
            return None
        return self._left()

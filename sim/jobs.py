"""One complete search, shared out among workers (`sim.strategies.frontier`).

A worker gets a unit, explores it for a moment and comes back with what it did and what it did not
come to.  Its work counts when it is back: the unit of a worker that
died is given to another one.  So the classes that are explored, and all totals of a search that
ends, are those of the search in one process, whatever the workers are and however many.  Which of
several findings comes first is not, nor how often a way to a fatal one is run, and neither is what
searches directed at predicted findings come to, for they begin from whichever execution showed them
first.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future
from concurrent.futures import wait as wait_for
from typing import Final, final

from sim.errors import UsageError
from sim.explore import Explorer, Keep
from sim.pools import Pool
from sim.sizing import Sizing
from sim.slices import Limits, Slice, run_slice, spec_of
from sim.strategies.dpor import Dpor
from sim.strategies.frontier import Frontier, Unit
from sim.totals import COMPLETE, FOUND, INTERRUPTED, Budget, Result, Totals
from sim.workload import Program

SLICE_S: Final = 1.5  # of a slice, where there is enough to do for all
SHORT_S: Final = 0.05  # of a slice, where there is not
QUEUED: Final = 1  # units that wait for a worker
PATIENCE: Final = 10  # times that workers die before any comes back
MANY: Final = 1_000_000  # executions of a slice


@final
class Jobs:
    """Runs a program's complete search on the workers of a pool."""

    def __init__(
        self,
        program: Program,
        frontier: Frontier,
        budget: Budget,
        totals: Totals,
        pool: Pool,
        *,
        keep_going: bool = False,
        keep: Keep | None = None,
        sizing: Sizing | None = None,
    ) -> None:
        self.totals: Final = totals
        self._frontier: Final = frontier
        self._budget: Final = budget
        self._pool: Final = pool
        self._keep_going: Final = keep_going
        self._keep: Final = keep
        self._sizing: Final = sizing
        self._spec: Final = spec_of(program)
        # Makes the directed searches and takes what probes find, and nothing else.
        self._explorer: Final = Explorer(program, Dpor(), budget, totals=totals)
        self._running: Final[dict[Future[Slice], tuple[Unit, int]]] = {}
        self._deaths = 0

    def explore(self, progress: Callable[[Result], None] | None = None) -> Result:
        """Run until a finding, the end of the search or the budget."""
        totals, result = self.totals, self.totals.result
        totals.start()
        executor = self._pool.executor()
        try:
            while not result.stopped:
                self._checkpoint()
                self._submit(executor)
                if not self._running:
                    result.stopped = totals.over_budget()
                    break
                if not self._absorb(progress):
                    executor.shutdown(wait=False)
                    executor = self._pool.executor()
                if spent := totals.over_budget():
                    self._settle(progress)
                    self._stop(spent)
        finally:
            for future in self._running:
                future.cancel()
            executor.shutdown(wait=True)
        if self._frontier.done and result.stopped != FOUND:
            result.complete = True
            result.stopped = COMPLETE
        if progress is not None:
            progress(result)
        self._end()
        if self._keep is not None:
            over = result.stopped in (COMPLETE, FOUND)
            self._keep.keep(None if over else self._frontier.packed(), totals)
        return result

    def interrupted(self) -> Result:
        """The result so far, of an exploration that Ctrl-C has stopped."""
        self.totals.result.stopped = INTERRUPTED
        self._end()
        return self.totals.result

    def _end(self) -> None:
        result = self.totals.result
        self.totals.finish()
        if self._sizing is not None and result.stopped not in (COMPLETE, FOUND):
            self._sizing.conclude(self._frontier.packed(), result, self._explorer.probed)

    def _stop(self, why: str) -> None:
        self.totals.result.stopped = self.totals.result.stopped or why

    def _checkpoint(self) -> None:
        if self._keep is not None and self._keep.due():
            self._keep.keep(self._frontier.packed(), self.totals)
        if self._sizing is not None:
            result = self.totals.result
            self._sizing.remember(result.executions - result.directed, self._frontier.packed)
            if self._sizing.due():
                self._sizing.glance(self._frontier.packed(), result, self._explorer.probed)

    def _submit(self, executor: Executor) -> None:
        """Give out units as long as the budget is not spoken for."""
        executions, seconds = self.totals.left()
        if executions is not None:
            executions -= sum(share for _, share in self._running.values())
        slots = self._pool.workers + QUEUED - len(self._running)
        for _ in range(slots):
            if seconds <= 0 or (executions is not None and executions <= 0):
                return
            unit = self._frontier.claim()
            if unit is None:
                return
            enough = self._frontier.free() >= self._pool.workers
            share = MANY
            if executions is not None:
                share = min(MANY, -(-executions // self._pool.workers))
                executions -= share
            limits = Limits(
                share,
                min(SLICE_S if enough else SHORT_S, max(seconds / 2, SHORT_S)),  # one may wait
                self._budget.steps,
                self._keep_going,
                self.totals.result.executions,
            )
            future = executor.submit(run_slice, self._spec, unit.packed, limits)
            self._running[future] = unit, share

    def _settle(self, progress: Callable[[Result], None] | None) -> None:
        """Wait for what is being run, and let go of what is not yet."""
        for future in list(self._running):
            if future.cancel():
                self._frontier.give_back(self._running.pop(future)[0])
        while self._running and not self.totals.result.stopped:
            self._absorb(progress)

    def _absorb(self, progress: Callable[[Result], None] | None) -> bool:
        """Take what has come back; False if the workers are gone."""
        wait_for(self._running, return_when=FIRST_COMPLETED)
        alive = True
        for future in [future for future in self._running if future.done()]:
            unit, _ = self._running.pop(future)
            try:
                part = future.result()
            except Exception as error:
                if not _died(error):
                    raise
                alive = False
                self._frontier.give_back(unit)
                continue
            self._deaths = 0
            self._take(unit, part)
            if progress is not None:
                progress(self.totals.result)
            if self.totals.result.stopped:
                return True
        if not alive:
            self._mourn()
        return alive

    def _mourn(self) -> None:
        self._deaths += 1
        for unit, _ in self._running.values():
            self._frontier.give_back(unit)
        self._running.clear()
        if self._deaths > PATIENCE:
            raise UsageError(
                f"workers have died {self._deaths} times in a row, and done nothing: is there "
                "enough memory?  --jobs 1 does without them"
            )

    def _take(self, unit: Unit, part: Slice) -> None:
        totals = self.totals
        self._frontier.done_with(unit, part.left)
        earlier = totals.result.executions
        totals.add(part.result)
        known = {finding.key: (choices, nth) for finding, choices, nth in part.findings}
        for finding in totals.new(finding for finding, _, _ in part.findings):
            made, nth = known[finding.key]
            totals.found(finding, made, directed=False, number=earlier + nth)
        for key, before in part.predicted:
            if not totals.result.stopped and totals.to_try(key):
                self._explorer.search_for(key, before)


def _died(error: Exception) -> bool:
    """Whether a worker is gone, or its result was lost; not: what it raised."""
    return isinstance(error, BrokenExecutor | CancelledError) or type(error).__name__ in (
        "KilledWorker",
        "FutureCancelledError",
        "CommClosedError",
    )

"""How large a complete search is: executions run beside it, to count what they lead to.

They start from plans that the search has left (`Dpor.packed`), for `sim.strategies.estimate`.
The search never hears of them: they count neither as executions nor as steps, and their plans are
forgotten.  But they are executions like any other, so what one of them finds has been found.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Final, final

from sim.run import Rewound, Run, run_once
from sim.strategies.dpor import Dpor
from sim.strategies.estimate import Estimate, SpentError, estimate
from sim.strategies.steps import Packed
from sim.totals import FOUND, INTERRUPTED, Budget, Result
from sim.watch import watch
from sim.workload import Program

LEAST_S: Final = 1.0  # that a search which has been stopped may go on with probes
MOST_S: Final = 30.0
TENTH: Final = 0.1  # of the seconds of the search, between the two
FEW: Final = 1000  # executions that are enough where executions are the budget
SHARE: Final = 40  # or one for so many of the search: it takes about three times as long
GLANCE_S: Final = 0.25  # of a look during the search, at first
LONG_S: Final = 2.0  # of any such look
SELDOM: Final = 20  # one second of looks in so many
FIRST: Final = 16  # executions after which what is left is kept, and after twice as many, ...
LONG_AGO: Final = 16  # a search that is so many times as far looks back

# The addresses that were raced for, a path, and a plan at a place along it.
Alone = tuple[Packed, Packed, Packed]


@final
class Sizing:
    """Puts into results what is known of the size of one program's search.

    live  whether somebody watches the search, and is to know before it ends
    """

    def __init__(self, program: Program, budget: Budget, *, live: bool = False) -> None:
        self._program: Final = program
        self._budget: Final = budget
        self._live: Final = live
        self._began: Final = time.monotonic()
        self._due = self._began + LEAST_S
        self._mark = FIRST
        self._earlier: Final[list[tuple[int, bytes]]] = []  # the executions, and what was left

    def due(self) -> bool:
        """Whether it is time to look again while the search goes on."""
        return self._live and time.monotonic() >= self._due

    def remember(self, done: int, left: Callable[[], Packed]) -> None:
        """Keep what was `left` after so many executions, now and then: see :meth:`conclude`."""
        if done >= self._mark:
            self._mark = 2 * done
            text = json.dumps(left(), separators=(",", ":"))
            self._earlier.append((done, zlib.compress(text.encode(), 1)))
            while len(self._earlier) > 1 and self._earlier[1][0] * LONG_AGO <= done:
                self._earlier.pop(0)

    def glance(self, left: Packed, result: Result, collect: Callable[[Run], None]) -> None:
        """Look while the search goes on; see :meth:`conclude`."""
        began = time.monotonic()
        seconds = min(LONG_S, max(GLANCE_S, (began - self._began) / SELDOM))
        self._estimate(left, result, collect, seconds, None)
        now = time.monotonic()
        self._due = now + max(LEAST_S, SELDOM * (now - began))

    def conclude(self, left: Packed, result: Result, collect: Callable[[Run], None]) -> None:
        """Look when the search has been stopped; Ctrl-C ends that, too.

        If there is something to say, a second look starts from what was left when a small part of
        the executions had been run.  By how much its interval is too low, now that more is known,
        this one may be, too: its upper end goes up by that.  And what that look says is as good as
        what this one says: the upper end is no lower.

        How many executions are run depends on no clock if executions are the budget, as long as
        they take no longer than is bearable.

        left     what is left of the search
        result   what the search has come to; what it is estimated to come to is put there
        collect  is given the executions that show something
        """
        seconds = LEAST_S
        if result.stopped != INTERRUPTED:
            taken = time.monotonic() - self._began
            seconds = min(MOST_S, max(LEAST_S, TENTH * taken))
        executions = self._budget.executions
        fixed = executions is not None and result.executions >= executions
        most = max(FEW, result.executions // SHARE) if fixed else None
        try:
            found = self._estimate(left, result, collect, seconds, most)
            if found is not None and found.low < found.high:
                self._look_back(result, collect, seconds, most)
        except KeyboardInterrupt:
            return

    def _estimate(
        self,
        left: Packed,
        result: Result,
        collect: Callable[[Run], None],
        seconds: float,
        most: int | None,
    ) -> Estimate | None:
        """Run up to about so many executions, if that is a number, for so many seconds."""
        done = result.executions - result.directed
        result.at_least = done + sum(1 for _ in each(left))
        found = self._sampled(left, result, collect, seconds, most)
        if found is not None:
            result.estimate = done + found.mean
            result.estimate_low = done + found.low
            result.estimate_high = done + found.high
        for name in ("estimate", "estimate_low", "estimate_high"):
            value = getattr(result, name)
            if value is not None:  # of an earlier look, if there was no time now
                setattr(result, name, max(value, float(result.at_least)))
        return found

    def _look_back(
        self, result: Result, collect: Callable[[Run], None], seconds: float, most: int | None
    ) -> None:
        """Raise the upper end by as much as an estimate from an earlier time would be too low."""
        done, high = result.executions - result.directed, result.estimate_high
        if not self._earlier:
            return
        before, packed = self._earlier[0]
        if high is None or result.estimate is None or before * LONG_AGO > done:
            return
        left = json.loads(zlib.decompress(packed))
        found = self._sampled(left, result, collect, seconds / 2, most)
        if found is not None:
            too_low = (result.estimate - before) / found.high
            raised = done + (high - done) * max(1.0, too_low)
            result.estimate_high = max(raised, before + found.mean)

    def _sampled(
        self,
        left: Packed,
        result: Result,
        collect: Callable[[Run], None],
        seconds: float,
        most: int | None,
    ) -> Estimate | None:
        """How many executions are left of a search, from up to so many of them."""
        began = time.monotonic()
        ran = 0
        aside = Aside(self._program, left[0], self._budget.steps)

        def behind(plan: Alone) -> Iterator[Alone]:
            nonlocal ran
            if result.stopped == FOUND or time.monotonic() - began >= seconds:
                raise SpentError
            ran += 1
            run = aside.run(plan)
            if run.execution.findings:
                collect(run)
            return aside.led_to()

        def fits(more: int) -> bool:
            if most is not None and ran + more > most:
                return False
            return (time.monotonic() - began) * (ran + more) <= seconds * ran

        try:
            return estimate(list(each(left)), behind, fits, Random(result.executions))
        finally:
            aside.close()


@final
class Aside:
    """Runs one execution after another, and leaves what they lead to."""

    def __init__(self, program: Program, contended: Packed, max_steps: int) -> None:
        self._program: Final = program
        self._max_steps: Final = max_steps
        self._search: Final = Dpor([contended, []])
        self._rewound: Final = (
            Rewound(program, self._search, max_steps) if program.machine.rewinds else None
        )

    def run(self, alone: Alone) -> Run:
        """The execution that a plan leads to."""
        contended, path, plan = alone
        self._search.take([contended, [[path[: plan[0] - 1], [plan]]]])
        self._search.begin()
        watch()
        if self._rewound is not None:
            return self._rewound.next()
        return run_once(self._program, self._search, max_steps=self._max_steps)

    def led_to(self) -> Iterator[Alone]:
        """The plans that it leads to."""
        return each(self._search.leave())

    def close(self) -> None:
        """There are no more."""
        if self._rewound is not None:
            self._rewound.close()


def each(left: Packed) -> Iterator[Alone]:
    """The plans that are left, one by one."""
    contended, rests = left
    return ((contended, path, plan) for path, plans in rests for plan in plans)

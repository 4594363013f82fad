"""Steps that wait for several things at once: cells that others write, their CPU, others' ends.

What a cell held before a write is known of one that writes just the cell, by its name.  Where it is
not, nobody can say whether the step was possible; so it is tried, and may turn out to be in vain.

Whether such a step could have come before a write is not a matter of that write alone.  So the sets
of earlier steps are looked for before all of which it was possible (:class:`Cut`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, final

from sim import ops
from sim.strategies.history import History
from sim.strategies.steps import Clock, Cut, Spot, Step, join


class Unknown:
    """Instead of the value of a cell."""


UNKNOWN: Final = Unknown()


@final
class Joint:
    """What a step waits for.

    predicate  of the values of cells, at `spots`; values: what they are where the step stands
    cpu        that has to be free, too, if any
    ends       of sections and threads: behind which steps they come
    """

    def __init__(
        self,
        history: History,
        predicate: Callable[..., bool],
        spots: Sequence[Spot],
        values: list[Any],
        cpu: Spot | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        self._history: Final = history
        self._predicate: Final = predicate
        self._spots: Final = spots
        self._values: Final = values
        self._cpu: Final[Sequence[int]] = cpu.writes if cpu is not None else ()
        self._ends: Final = ends

    def writes(self, step: Step, clock: Clock) -> list[int]:
        """The steps that write the cells, the last first; none that `clock` knows."""
        near = [other for spot in self._spots for other in (spot, *spot.overlaps)]
        found = sorted({at for spot in near for at in spot.writes}, reverse=True)
        return [at for at in found if self._is_new(step, clock, at)]

    def met(self, step: Step, clock: Clock) -> list[int]:
        """The steps that may not change places with `step`, the last first; none as above.

        Those that do not change what it waits for, too: it need not have been possible between.
        """
        steps = self._history.steps
        return [
            at
            for at in range(len(steps) - 1, 0, -1)
            if steps[at] is not step and self._is_new(step, clock, at) and step.meets(steps[at])
        ]

    def is_plain(self, writes: Sequence[int]) -> bool:
        """Whether it is known what cells held before these steps, which write one of them."""
        steps = self._history.steps
        written = {steps[at].start for at in writes}
        return len(written) <= 1 and not any(
            steps[at].op.kind == ops.FREE or UNKNOWN in self._before(steps[at], self._values)
            for at in writes
        )

    def cuts(self, step: Step, clock: Clock, writes: Sequence[int]) -> list[Cut]:
        """The sets of `writes`, the last first, before all of which the step was possible.

        Writes are left out one by one, always one that no other one comes after, and from the last
        on: so no set is come to twice.  As soon as the step is possible without some of them, the
        others are a matter of the execution in which it comes before those.

        clock   what happens before the step by its own thread
        """
        is_after = self._history.is_after
        cuts = []
        left: list[tuple[int, tuple[int, ...], list[Any], int]] = [
            (0, (), self._values, len(self._cpu))
        ]
        while left:
            begin, removed, now, on_cpu = left.pop()
            kept = [at for at in writes[:begin] if at not in removed]
            for nth in range(begin, len(writes)):
                at = writes[nth]
                if not any(is_after(at, other) for other in kept):
                    without = (*removed, at)
                    before = self._before(self._history.steps[at], now)
                    holds = on_cpu - self._cpu.count(at)
                    never = any(is_after(at, end) for end in self._ends)  # nor before still more
                    unknown = UNKNOWN in before
                    there = unknown or self._predicate(*before)
                    there = there and self._history.holder(self._cpu, holds) < 0
                    if there and not never:
                        before_it = self._clock(step, clock, without)
                        cuts.append(Cut(without, before_it, unsure=unknown))
                    if not never and (unknown or not there):
                        left.append((nth + 1, without, before, holds))
                kept.append(at)
        return cuts

    def _before(self, write: Step, values: list[Any]) -> list[Any]:
        """The values of the cells without `write`, the last one that is left."""
        before = values[:]
        if write.writes and write.op.kind != ops.FREE:  # which leaves what was there
            for nth, spot in enumerate(self._spots):
                if write.start == spot.addr and write.end == spot.addr + spot.size:
                    before[nth] = write.before if write.op.target is not None else UNKNOWN
                elif write.start < spot.addr + spot.size and spot.addr < write.end:
                    before[nth] = UNKNOWN
        return before

    def _is_new(self, step: Step, clock: Clock, at: int) -> bool:
        other = self._history.steps[at]
        return other.number != step.number and other.time > clock[other.number]

    def _clock(self, step: Step, clock: Clock, removed: tuple[int, ...]) -> Clock:
        """What happens before the step if the steps `removed`, and all after them, do not."""
        steps, clock = self._history.steps, clock[:]
        for at in self._ends:
            join(clock, steps[at].clock)
        for at in range(removed[-1] + 1, len(steps)):
            other = steps[at]
            left_out = any(self._history.is_after(one, at) for one in removed)
            if not left_out and other.number != step.number and step.meets(other):
                join(clock, other.clock)
        return clock

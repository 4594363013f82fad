"""Depth-first search of every choice, with an optional bound on preemptions.

The bound is that of Musuvathi and Qadeer, "Iterative Context Bounding for Systematic Testing
of Multithreaded Programs", PLDI 2007: a switch away from a thread that could have gone on
counts; a switch from one that waits or has ended does not.

Interleavings that differ only in the order of independent steps lead to the same states.  Where
the search meets a past that it has met before (`sim.strategies.causality`), with the same thread
to go on and no fewer preemptions left, it stops that execution: all that could follow has been
run, or will be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from sim.errors import NondeterminismError
from sim.events import Event
from sim.strategies.causality import Causality
from sim.threads import Thread

REDUNDANT: Final = -1  # instead of a thread: this execution need not go on

Pending = tuple[tuple[int, int, int], ...]


def _pending(enabled: Sequence[Thread]) -> Pending:
    """Who could go on, and with what."""
    able = [(t.key, t.pending.kind, t.pending.addr) for t in enabled if t.pending is not None]
    return tuple(sorted(able))  # threads are created in different orders


@final
class Dfs:
    """All executions, or all with at most `bound` preemptions, each exactly once.

    bound     None: unbounded
    distinct  whether to stop an execution as soon as its past is one that was met before
    complete  whether every execution (within the bound) has been run
    """

    kinds = None  # sees every event

    def __init__(self, bound: int | None = None, *, distinct: bool = False) -> None:
        self.bound: Final = bound
        self.distinct: Final = distinct
        self.complete = False
        self._path: Final[list[list[int]]] = []  # [taken, alternatives] per choice
        self._depth = 0
        self._preemptions = 0
        self._runs = 0
        self._causality = Causality()
        # The fewest preemptions it took, and what the threads were about to do.
        self._met: Final[dict[tuple[int, int], tuple[int, Pending]]] = {}

    def begin(self) -> bool:
        if self._runs:
            if self._depth < len(self._path):
                raise NondeterminismError(
                    f"an execution made {self._depth} choices, where the same choices led to "
                    f"{len(self._path)} before: something outside the choices decides"
                )
            while self._path and self._path[-1][0] + 1 == self._path[-1][1]:
                self._path.pop()
            if not self._path:
                self.complete = True
                return False
            self._path[-1][0] += 1
        self._runs += 1
        self._depth = 0
        self._preemptions = 0
        self._causality = Causality()
        return True

    def observe(self, event: Event) -> None:
        if self.distinct:
            self._causality.observe(event)

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        first = enabled.index(last) if last is not None and last in enabled else -1
        if self.distinct and self._depth == len(self._path) and self._again(enabled, first):
            return REDUNDANT
        may_preempt = self.bound is None or self._preemptions < self.bound
        alternatives = len(enabled) if first < 0 or may_preempt else 1
        taken = self._take(alternatives)
        if first < 0:
            return taken
        if taken == 0:
            return first
        self._preemptions += 1
        return taken - 1 if taken <= first else taken

    def choose(self, thread: Thread, n: int) -> int:
        del thread
        return self._take(n)

    def _again(self, enabled: Sequence[Thread], first: int) -> bool:
        """Whether a search from here has nothing to add to one that was begun before."""
        going_on = enabled[first].key if first >= 0 and self.bound is not None else 0
        spent = self._preemptions if self.bound is not None else 0
        here = (self._causality.past, going_on)
        pending = _pending(enabled)
        fewest, before = self._met.get(here, (spent + 1, pending))
        if before != pending:
            raise NondeterminismError(
                "two executions with the same past go on differently: threads share state outside "
                "of cells (a Python list, a dict, a variable of an enclosing function)"
            )
        if fewest <= spent:
            return True
        self._met[here] = (spent, pending)
        return False

    def estimate(self) -> float | None:
        """How many executions there are in all, if all subtrees were as large as those seen.

        None before the first choice.
        """
        done, share = 0.0, 1.0
        for taken, alternatives in self._path:
            share /= alternatives
            done += share * taken
        return self._runs / done if done else None

    def _take(self, alternatives: int) -> int:
        depth = self._depth
        self._depth += 1
        if depth == len(self._path):
            self._path.append([0, alternatives])
            return 0
        taken, recorded = self._path[depth]
        if recorded != alternatives:
            raise NondeterminismError(
                f"choice {depth} had {recorded} alternatives and now has {alternatives} after the "
                "same choices: something outside the choices decides (set iteration, a global, "
                "the clock, state kept between executions)"
            )
        return taken

"""PCT: probabilistic concurrency testing.

Burckhardt, Kothari, Musuvathi, Nagarakatte: "A Randomized Scheduler with Probabilistic
Guarantees of Finding Bugs", ASPLOS 2010.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, final

from sim.strategies.random_walk import run_rng
from sim.threads import Thread


@final
class Pct:
    """Run the enabled thread of the highest random priority; lower it at d-1 random points.

    A bug of depth d (one that d ordering constraints suffice to produce) in a program of n
    threads and k steps is found by one execution with probability at least 1 / (n * k^(d-1)).
    Here k is the largest number of scheduling points of the executions so far, so the bound
    holds from the second execution on, as long as none is longer.

    depth  d, 1 or more
    """

    def __init__(self, seed: int, depth: int = 3, first: int = 0) -> None:
        self.seed: Final = seed
        self.depth: Final = depth
        self._run = first - 1
        self._length = 32
        self._points = 0
        self._random = Random(0)
        self._priority: dict[str, float] = {}
        self._changes: dict[int, int] = {}

    def begin(self) -> bool:
        self._run += 1
        self._length = max(self._length, self._points)
        self._points = 0
        self._random = run_rng(self.seed, self._run)
        self._priority = {}
        self._changes = {
            self._random.randrange(self._length): rank for rank in range(self.depth - 1)
        }
        return True

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        del last
        best = self._best(enabled)
        rank = self._changes.get(self._points)
        self._points += 1
        if rank is not None:
            self._priority[enabled[best].name] = -1.0 - rank  # below every initial priority
            best = self._best(enabled)
        return best

    def choose(self, thread: Thread, n: int) -> int:
        del thread
        return self._random.randrange(n)

    def _best(self, enabled: Sequence[Thread]) -> int:
        for thread in enabled:
            if thread.name not in self._priority:
                self._priority[thread.name] = self._random.random()
        return max(range(len(enabled)), key=lambda i: self._priority[enabled[i].name])

"""Random walk: at every scheduling point each enabled thread is equally likely."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, final

from sim.threads import Thread


def run_rng(seed: int, run: int) -> Random:
    """The random numbers of the `run`-th execution (0-based) under `seed`.

    Each execution has a stream of its own, so that one can be repeated without the others.
    """
    return Random(f"{seed}:{run}")


@final
class RandomWalk:
    """Uniform random choices; the n-th execution depends on `seed` and n alone.

    first  the number of the first execution (to repeat a single one)
    """

    def __init__(self, seed: int, first: int = 0) -> None:
        self.seed: Final = seed
        self._run = first - 1
        self._random = Random(0)
        self._weight = 0.0
        self._weights = 0.0
        self._ended = 0

    def begin(self) -> bool:
        if self._weight:
            self._weights += self._weight
            self._ended += 1
        self._weight = 1.0
        self._run += 1
        self._random = run_rng(self.seed, self._run)
        return True

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        del last
        self._weight *= len(enabled)
        return int(self._random.random() * len(enabled))

    def choose(self, thread: Thread, n: int) -> int:
        del thread
        self._weight *= n
        return int(self._random.random() * n)

    def estimate(self) -> float | None:
        """How many executions there are in all, unbiased but of high variance.

        Each random execution has probability 1 / w, w being the product of the numbers of
        alternatives that it met; the mean of w estimates the number of leaves of the tree of
        choices.  Knuth, "Estimating the Efficiency of Backtrack Programs", Math. Comp. 1975.
        """
        return self._weights / self._ended if self._ended else None

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

    def begin(self) -> bool:
        self._run += 1
        self._random = run_rng(self.seed, self._run)
        return True

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        del last
        return int(self._random.random() * len(enabled))

    def choose(self, thread: Thread, n: int) -> int:
        del thread
        return int(self._random.random() * n)

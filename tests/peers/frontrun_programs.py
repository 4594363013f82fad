"""The benchmark programs for frontrun, which runs Python threads and sees attributes and items.

``frontrun python frontrun_programs.py SECONDS PROGRAM N [K]`` searches, no longer than SECONDS, and
prints one JSON object.  Python has no atomic add: atomic_increment adds under a lock.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import frontrun

Worker = Callable[[Any], None]


class Shared:
    """What the threads share."""

    def __init__(self, cells: int) -> None:
        self.x = 0
        self.a = [0] * cells
        self.lock = threading.Lock()


def counter(n: int, k: int) -> tuple[int, list[Worker]]:
    def increments(shared: Shared) -> None:
        for _ in range(k):
            t = shared.x
            shared.x = t + 1

    return 0, [increments] * n


def atomic_increment(n: int) -> tuple[int, list[Worker]]:
    def adds(shared: Shared) -> None:
        with shared.lock:
            shared.x += 1

    return 0, [adds] * n


def readers(n: int) -> tuple[int, list[Worker]]:
    def writes(shared: Shared) -> None:
        shared.x = 1

    def reader(i: int) -> Worker:
        def reads(shared: Shared) -> None:
            shared.a[i] = 1
            _ = shared.x

        return reads

    return n, [writes, *[reader(i) for i in range(n)]]


def lastzero(n: int) -> tuple[int, list[Worker]]:
    def searches(shared: Shared) -> None:
        i = n
        while shared.a[i] != 0:
            i -= 1

    def filler(j: int) -> Worker:
        def fills(shared: Shared) -> None:
            shared.a[j] = shared.a[j - 1] + 1

        return fills

    return n + 1, [searches, *[filler(j) for j in range(1, n + 1)]]


PROGRAMS: dict[str, Callable[..., tuple[int, list[Worker]]]] = {
    "counter": counter,
    "atomic_increment": atomic_increment,
    "readers": readers,
    "lastzero": lastzero,
}


def main() -> None:
    seconds, name, *numbers = sys.argv[1:]
    timeout_s = float(seconds)
    cells, workers = PROGRAMS[name](*map(int, numbers))
    started = time.perf_counter()
    result = frontrun.explore(
        setup=lambda: Shared(cells),
        workers=workers,
        invariant=lambda _shared: True,
        preemption_bound=None,
        stop_on_first=False,
        detect_io=False,
        total_timeout=timeout_s,
    )
    elapsed = time.perf_counter() - started
    complete = bool(result.property_holds) and elapsed < timeout_s
    answer = {"executions": result.num_explored, "elapsed_s": elapsed, "complete": complete}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

"""The benchmark programs for detangle, which runs asyncio tasks and switches at awaits only.

``python detangle_programs.py SECONDS PROGRAM N [K]`` searches, no longer than SECONDS, and prints
one JSON object.  A task awaits between two accesses; what stands between two awaits is atomic.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import detangle
from detangle.strategies import DFS

Tasks = list[Coroutine[Any, Any, None]]
UNBOUNDED = 10**9


class Shared:
    """What the tasks share."""

    def __init__(self, cells: int) -> None:
        self.x = 0
        self.a = [0] * cells


async def switch() -> None:
    await asyncio.sleep(0)


def counter(n: int, k: int) -> Tasks:
    shared = Shared(0)

    async def increments() -> None:
        for turn in range(k):
            if turn:
                await switch()
            t = shared.x
            await switch()
            shared.x = t + 1

    return [increments() for _ in range(n)]


def atomic_increment(n: int) -> Tasks:
    shared = Shared(0)

    async def adds() -> None:
        shared.x += 1

    return [adds() for _ in range(n)]


def readers(n: int) -> Tasks:
    shared = Shared(n)

    async def writes() -> None:
        shared.x = 1

    async def reads(i: int) -> None:
        shared.a[i] = 1
        await switch()
        _ = shared.x

    return [writes(), *[reads(i) for i in range(n)]]


def lastzero(n: int) -> Tasks:
    shared = Shared(n + 1)

    async def searches() -> None:
        i = n
        while shared.a[i] != 0:
            i -= 1
            await switch()

    async def fills(j: int) -> None:
        t = shared.a[j - 1]
        await switch()
        shared.a[j] = t + 1

    return [searches(), *[fills(j) for j in range(1, n + 1)]]


PROGRAMS: dict[str, Callable[..., Tasks]] = {
    "counter": counter,
    "atomic_increment": atomic_increment,
    "readers": readers,
    "lastzero": lastzero,
}


def main() -> None:
    seconds, name, *numbers = sys.argv[1:]
    timeout_s = float(seconds)

    async def program() -> None:
        await asyncio.gather(*PROGRAMS[name](*map(int, numbers)))

    started = time.perf_counter()
    stats = detangle.explore(
        program,
        runs=10**9,
        strategy=DFS(max_delays=UNBOUNDED),
        max_duration=timeout_s,
        shrink=False,
        database=False,
    )
    elapsed = time.perf_counter() - started
    answer = {"executions": stats.runs, "elapsed_s": elapsed, "complete": stats.exhausted}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

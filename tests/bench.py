"""Speed of the engine, as ratios to a bare loop of the same run.  `make bench` prints the table.

The yardstick is the least that any engine like this one must do: resume a coroutine, look at
the operation that it yields, apply it, go on with another one; no choices recorded, no events,
no detectors.  Absolute figures depend on the machine; the ratios hardly do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from random import Random

from sim.choosing import Strategy
from sim.explore import Budget, Explorer, Result
from sim.macros import READ_ONCE, WRITE_ONCE
from sim.memory import Memory
from sim.run import run_once
from sim.strategies.dfs import Dfs
from sim.strategies.random_walk import RandomWalk
from sim.workload import Program, find
from workloads.benchmarks.counter import Counter

Row = tuple[str, str, int, int, float]


def bare_loop(steps: int) -> Row:
    """Two coroutines that increment a cell, resumed in random order; no engine around them."""
    memory = Memory()
    shared = memory.static(Counter)

    async def increments() -> None:
        while True:
            t = await READ_ONCE(shared.x)
            await WRITE_ONCE(shared.x, t + 1)

    coroutines = [increments(), increments()]
    pending = [coroutine.send(None) for coroutine in coroutines]
    random = Random(0).random
    started = time.perf_counter()
    for _ in range(steps):
        which = int(random() * 2)
        op = pending[which]
        result = op.target.value
        if op.operand is not None:
            op.target.value = op.operand
        pending[which] = coroutines[which].send(result)
    elapsed = time.perf_counter() - started
    for coroutine in coroutines:
        coroutine.close()
    return "bare loop of coroutines", "random", 1, steps, elapsed


def one_long_run(program: Program, label: str) -> Row:
    """One execution, which shows the speed of a step without that of setting up."""
    strategy = RandomWalk(0)
    strategy.begin()
    started = time.perf_counter()
    run = run_once(program, strategy, max_steps=10**9)
    return label, "random", 1, run.execution.step, time.perf_counter() - started


def many_runs(program: Program, label: str, name: str, strategy: Strategy, seconds: float) -> Row:
    """As many executions as fit."""
    result: Result = Explorer(program, strategy, Budget(seconds=seconds), keep_going=True).explore()
    return label, name, result.executions, result.steps, result.elapsed_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="per row")
    seconds = parser.parse_args().seconds
    counter = find("counter")
    replace = find("inner_map_replace")
    rows: list[Callable[[], Row]] = [
        lambda: bare_loop(400_000),
        lambda: one_long_run(counter.prepare({"n": 2, "k": 50_000}), "counter n=2 k=50000"),
        lambda: many_runs(
            counter.prepare({"n": 2, "k": 3}), "counter n=2 k=3", "random", RandomWalk(0), seconds
        ),
        lambda: many_runs(
            counter.prepare({"n": 2, "k": 3}), "counter n=2 k=3", "dfs", Dfs(), seconds
        ),
        lambda: many_runs(
            replace.prepare({}, version="6.8"),
            "inner_map_replace",
            "random",
            RandomWalk(0),
            seconds,
        ),
        lambda: many_runs(
            replace.prepare({}, version="6.8"), "inner_map_replace", "dfs", Dfs(2), seconds
        ),
    ]
    head = ("workload", "strategy", "executions", "steps", "executions/s", "steps/s", "bare/this")
    print(
        f"{head[0]:<26}{head[1]:<10}{head[2]:>12}{head[3]:>12}{head[4]:>14}{head[5]:>12}{head[6]:>11}"
    )
    bare = 0.0
    for measure in rows:
        label, name, executions, steps, elapsed = measure()
        speed = steps / elapsed
        bare = bare or speed
        print(
            f"{label:<26}{name:<10}{executions:>12,}{steps:>12,}{executions / elapsed:>14,.0f}"
            f"{speed:>12,.0f}{bare / speed:>11.1f}"
        )


if __name__ == "__main__":
    main()

"""Litmus programs as data, run twice: on the kernel model, and on the bare grace-period law.

A program is a tuple of threads, a thread a tuple of instructions in words::

    x=1           write            lock FLAVOUR, unlock FLAVOUR    a reader
    x             read             sync FLAVOUR                    wait for a grace period
    sleep         context switch   (flavours: rcu, tasks, trace)

Each thread is one system call on a CPU that no other thread can use.  The outcome of an execution
is what was read, in the order of the text.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from kernel_model.kernel import Kernel
from kernel_model.linux.task import sleeping, syscall
from kernel_model.rcu.tasks import synchronize_rcu_tasks
from kernel_model.rcu.tasks_trace import rcu_read_lock_trace, synchronize_rcu_tasks_trace
from kernel_model.rcu.tree import rcu_read_lock, synchronize_rcu
from sim.macros import READ_ONCE, WRITE_ONCE, outcome
from sim.threads import spawn
from tests.kernel_model.support import TASKS_RCU, Shared, explore

Code = tuple[str, ...]
Program = tuple[Code, ...]
Outcomes = set[tuple[int, ...]]

READERS: dict[str, Any] = {"rcu": rcu_read_lock, "trace": rcu_read_lock_trace}
WAITS: dict[str, Any] = {
    "rcu": synchronize_rcu,
    "tasks": synchronize_rcu_tasks,
    "trace": synchronize_rcu_tasks_trace,
}


def on_the_model(program: Program, preempt: str, fixes: Iterable[str] = ()) -> Outcomes:
    """What the kernel model allows, by complete search."""

    async def main(kernel: Kernel, shared: Shared) -> None:
        for nth, code in enumerate(program):
            await spawn(run, kernel, shared, code, name=f"P{nth}")

    explored = explore(main, preempt=preempt, config=TASKS_RCU, fixes=fixes)
    assert explored.states == {"done"}
    assert not explored.findings
    return {sum(said, ()) for said in explored.outcomes}


async def run(kernel: Kernel, shared: Shared, code: Code) -> None:
    read: list[int] = []
    guards: list[Any] = []
    async with syscall(kernel):
        for instruction in code:
            word, _, rest = instruction.partition(" ")
            place, writes, value = instruction.partition("=")
            if word == "lock":
                guards.append(READERS[rest]())
                await guards[-1].__aenter__()
            elif word == "unlock":
                nth = max(i for i, g in enumerate(guards) if isinstance(g, READERS[rest]))
                await guards.pop(nth).__aexit__(None, None, None)
            elif word == "sync":
                await WAITS[rest](kernel)
            elif word == "sleep":
                async with sleeping("test"):
                    pass
            elif writes:
                await WRITE_ONCE(getattr(shared, place), int(value))
            else:
                read.append(await READ_ONCE(getattr(shared, place)))
    await outcome(tuple(read))


# -- the law by itself: sections, starts and ends of grace periods, and nothing else ---------------

Step = tuple[str, str, int]  # begin, end, start, wait: what, flavour, number; read; write


def on_the_law(program: Program, preempt: str) -> Outcomes:
    """What the law allows, by trying every order of the steps."""
    threads = [tuple(steps(code, preempt)) for code in program]
    found: Outcomes = set()
    nowhere: Any = ((0,) * len(threads), frozenset(), frozenset(), (), ((),) * len(threads))
    todo = [nowhere]
    reached = {nowhere}
    while todo:
        at, memory, opened, periods, read = todo.pop()
        if all(at[t] == len(threads[t]) for t in range(len(threads))):
            found.add(sum(read, ()))
        for t in range(len(threads)):
            if at[t] == len(threads[t]):
                continue
            kind, name, value = threads[t][at[t]]
            section = (name, t, value)
            after = [(*at[:t], at[t] + 1, *at[t + 1 :]), memory, opened, periods, read]
            if kind == "begin":
                after[2] = opened | {section}
            elif kind == "end":
                after[2] = opened - {section}
            elif kind == "start":
                waits_for = frozenset(s for s in opened if s[0] == name)
                after[3] = tuple(sorted({**dict(periods), section: waits_for}.items()))
            elif kind == "wait":
                if dict(periods)[section] & opened:
                    continue
            elif kind == "write":
                after[1] = frozenset({**dict(memory), name: value}.items())
            else:
                seen = (*read[t], dict(memory).get(name, 0))
                after[4] = (*read[:t], seen, *read[t + 1 :])
            if tuple(after) not in reached:
                reached.add(tuple(after))
                todo.append(tuple(after))
    return found


def steps(code: Code, preempt: str) -> Iterator[Step]:
    """The steps of one thread; what is a reader of what follows from the documentation."""
    implicit = "rcu" if preempt == "none" else "tasks"  # any kernel code between context switches
    depth = {"rcu": 0, "trace": 0}
    number = 0
    yield "begin", implicit, number
    for instruction in code:
        word, _, name = instruction.partition(" ")
        place, writes, value = instruction.partition("=")
        explicit = word in ("lock", "unlock") and name != implicit
        if word == "lock" and explicit:
            depth[name] += 1
            if depth[name] == 1:
                yield "begin", name, 0
        elif word == "unlock" and explicit:
            depth[name] -= 1
            if depth[name] == 0:
                yield "end", name, 0
        elif word in ("sync", "sleep"):
            flavour = implicit if preempt == "none" and name == "tasks" else name
            if word == "sync":
                yield "start", flavour, number
            yield "end", implicit, number
            if word == "sync":
                yield "wait", flavour, number
            number += 1
            yield "begin", implicit, number
        elif word not in ("lock", "unlock"):
            yield ("write", place, int(value)) if writes else ("read", place, 0)
    yield "end", implicit, number

"""What complete searches of the same program have in common when they steer an execution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from sim import ops
from sim.errors import NondeterminismError
from sim.threads import Thread

ENDS: Final = frozenset({ops.QUIESCENT, ops.DEADLOCK})


def thread_of(key: int, alive: Sequence[Thread], able: Callable[[Thread], bool]) -> Thread:
    """The thread of that key, which could go on here before.  NondeterminismError: it cannot."""
    for thread in alive:
        if thread.key == key and able(thread):
            return thread
    raise NondeterminismError(
        "a thread that could go on after the same steps before cannot now: something outside the "
        "choices decides (set iteration, a global, the clock, state kept between executions)"
    )


def thread_to_try(
    key: int, alive: Sequence[Thread], able: Callable[[Thread], bool]
) -> Thread | None:
    """The same, but None if it waits: that it need not was not sure (`joint.UNKNOWN`)."""
    if any(thread.key == key and thread.guarded and not able(thread) for thread in alive):
        return None
    return thread_of(key, alive, able)


def chosen(value: int, n: int) -> int:
    """The value of a choice among `n`.  NondeterminismError: there were more of them before."""
    if value >= n:
        raise NondeterminismError(f"a choice had more than {value} values and now {n}")
    return value

"""kernel/locking/mutex.c, v5.10: locks for which a task sleeps.

A lock is a cell of the object that it protects: ``freeze_mutex: Cell[Thread | None] = cell(None)``.

Not modelled: optimistic spinning, hand-off and fairness (any waiter may be next).
"""

from __future__ import annotations

from typing import Final, final

from kernel_model.linux.task import context, might_sleep, sleeping
from sim.cells import Cell
from sim.macros import lock, trylock, unlock
from sim.threads import Thread


@final
class mutex:
    """Hold the mutex."""

    def __init__(self, place: Cell[Thread | None]) -> None:
        self._place: Final = place

    async def __aenter__(self) -> None:
        await mutex_lock(self._place)

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            await mutex_unlock(self._place)


async def mutex_lock(place: Cell[Thread | None]) -> None:
    """Take the mutex, asleep while somebody else has it.

    The attempt to take it without sleeping is left out where nobody could tell the difference.
    """
    ctx = context()
    await might_sleep()
    if not ctx.sleep_is_noticed:
        await lock(place, "mutex_lock")
    elif not await trylock(place, "mutex_lock"):
        async with sleeping("mutex_lock"):
            await lock(place, "mutex_lock")
    ctx.locks.append(place)


async def mutex_trylock(place: Cell[Thread | None]) -> bool:
    """Take the mutex if it is free; whether it was."""
    taken = await trylock(place, "mutex_trylock")
    if taken:
        context().locks.append(place)
    return taken


async def mutex_unlock(place: Cell[Thread | None]) -> None:
    """Release the mutex."""
    context().forget_lock(place)
    await unlock(place, "mutex_unlock")

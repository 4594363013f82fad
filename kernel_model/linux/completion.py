"""kernel/sched/completion.c, v5.10: wait until somebody says that something is done.

A completion is a cell of the object that it belongs to: ``released: Cell[int] = cell(0)``; its
value is the number of waiters that may go on.

Not modelled: timeouts, signals, the order of waiters (any of them may be next).
"""

from __future__ import annotations

from typing import Final

from kernel_model.linux.task import context, might_sleep, sleeping
from sim import ops
from sim.cells import Cell
from sim.macros import READ_ONCE, cmpxchg, rmw, smp_store_release, wait_until
from sim.ops import Op

UINT_MAX: Final = 0xFFFF_FFFF


def complete(done: Cell[int]) -> Op[int]:
    """Let one waiter go on."""
    return rmw(done, "add", 1, "complete", ops.FULL)


def complete_all(done: Cell[int]) -> Op[None]:
    """Let every waiter go on, also those that come later."""
    return smp_store_release(done, UINT_MAX)


async def wait_for_completion(done: Cell[int]) -> None:
    """Go on when it is this waiter's turn, asleep until then.

    The look that may save the sleep is left out where nobody could tell the difference.
    """
    ctx = context()
    await might_sleep()
    while True:
        count = await READ_ONCE(done) if ctx.sleep_is_noticed else 0
        if count == 0:
            async with sleeping("wait_for_completion"):
                (count,) = await wait_until(_is_done, done, name="wait_for_completion")
        if count == UINT_MAX or await cmpxchg(done, count, count - 1) == count:
            return


def _is_done(count: int) -> bool:
    return count > 0

"""include/linux/refcount.h and include/linux/atomic-fallback.h, v5.10: reference counters.

A detector recognises a reference counter by the name of the operation: one of kind RMW, called
``refcount_*`` or ``atomic64_*``, whose operand is ``("add", n)`` or ``("inc_not_zero", n)``; its
result is the count before.

Not modelled: saturation (a detector reports what would saturate).
"""

from __future__ import annotations

from sim import ops
from sim.cells import Cell
from sim.macros import rmw
from sim.ops import Op


def refcount_inc(count: Cell[int]) -> Op[int]:
    """Take a reference, having one; orders nothing."""
    return rmw(count, "add", 1, "refcount_inc", ops.ONCE)


async def refcount_inc_not_zero(count: Cell[int]) -> bool:
    """Take a reference unless the last one is gone."""
    return await rmw(count, "inc_not_zero", 1, "refcount_inc_not_zero") != 0


async def refcount_dec_and_test(count: Cell[int]) -> bool:
    """Drop a reference; whether it was the last one."""
    return await rmw(count, "add", -1, "refcount_dec_and_test") == 1


def atomic64_inc(count: Cell[int]) -> Op[int]:
    """Take a reference, having one; orders nothing."""
    return rmw(count, "add", 1, "atomic64_inc", ops.ONCE)


def atomic64_dec(count: Cell[int]) -> Op[int]:
    """Drop a reference that is not the last one; orders nothing."""
    return rmw(count, "add", -1, "atomic64_dec", ops.ONCE)


async def atomic64_inc_not_zero(count: Cell[int]) -> bool:
    """Take a reference unless the last one is gone."""
    return await rmw(count, "inc_not_zero", 1, "atomic64_inc_not_zero") != 0


async def atomic64_dec_and_test(count: Cell[int]) -> bool:
    """Drop a reference; whether it was the last one."""
    return await rmw(count, "add", -1, "atomic64_dec_and_test") == 1

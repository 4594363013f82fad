"""kernel/rcu/tasks.h and include/linux/rcupdate_trace.h, v5.10: readers that may sleep.

Not modelled: a callback must not sleep, yet its thread could; idle tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, final

from kernel_model.fixes import Fix
from kernel_model.kernel import Kernel, kernel_function
from kernel_model.linux.task import Guard, context
from kernel_model.rcu.update import Flavour, __call_rcu, __wait_rcu_gp
from sim.cells import Cell, Struct, cell
from sim.ops import Op
from sim.sections import Domain, Section
from sim.threads import Body


@final
class RcuTasksTrace(Struct):
    """What Tasks Trace RCU keeps.

    cbs_tail  the latest callback queued
    """

    KIND = "rcu_tasks_trace"
    cbs_tail: Cell[Section | None] = cell(None)


@final
class rcu_read_lock_trace(Guard):
    """A reader that may sleep."""

    def enter(self) -> Iterator[Op[None]]:
        ctx = context()
        ctx.trace_nesting += 1
        return ctx.settle("rcu_read_lock_trace")

    def leave(self) -> Iterator[Op[None]]:
        ctx = context()
        ctx.trace_nesting -= 1
        return ctx.settle("rcu_read_unlock_trace")


def rcu_read_lock_trace_held() -> bool:
    """Whether the running thread is a reader of this flavour."""
    return context().trace_nesting > 0


def rcu_trace_implies_rcu_gp(kernel: Kernel) -> bool:
    """Whether a grace period of this flavour contains one of RCU."""
    return kernel.has(Fix.TRACE_IMPLIES_RCU)


def _domains(kernel: Kernel) -> tuple[Domain, ...]:
    if rcu_trace_implies_rcu_gp(kernel):
        return (kernel.rcu_tasks_trace, kernel.rcu)
    return (kernel.rcu_tasks_trace,)


TRACE: Final = Flavour(
    "rcu_tasks_trace", _domains, lambda kernel: kernel.subsystem(RcuTasksTrace).cbs_tail, "kthread"
)


@kernel_function
async def synchronize_rcu_tasks_trace(kernel: Kernel) -> None:
    """Sleep until every reader there is now has ended."""
    await __wait_rcu_gp("synchronize_rcu_tasks_trace", *_domains(kernel))


@kernel_function
async def call_rcu_tasks_trace(kernel: Kernel, function: Callable[..., Body], *args: Any) -> None:
    """Have ``function(*args)`` called after every reader there is now has ended."""
    await __call_rcu(kernel, TRACE, function, args)


@kernel_function
async def rcu_barrier_tasks_trace(kernel: Kernel) -> None:
    """Sleep until every callback queued so far has run, and for a grace period in any case."""
    await __wait_rcu_gp("rcu_barrier_tasks_trace", *_domains(kernel), TRACE.callbacks(kernel))

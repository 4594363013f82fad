"""kernel/rcu/tree.c and include/linux/rcupdate.h, v5.10: RCU, readers of which may not sleep.

What makes a task a reader is said in `kernel_model.linux.task`.

Not modelled: CPUs that go on- and offline, callbacks offloaded to kthreads, memory pressure;
the order of callbacks of threads that have a CPU of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar, final

from kernel_model.kernel import Kernel, kernel_function
from kernel_model.linux.task import Guard, context, might_sleep
from kernel_model.rcu.update import Flavour, __call_rcu, __wait_rcu_gp
from sim import ops
from sim.cells import Cell, Struct, cell
from sim.ops import Op
from sim.sections import Section
from sim.threads import Body

T = TypeVar("T")


@final
class RcuData(Struct):
    """What RCU keeps per CPU.

    cblist  the latest callback queued on it
    """

    KIND = "rcu_data"
    cblist: Cell[Section | None] = cell(None)


def _this_cpu(kernel: Kernel) -> Cell[Section | None] | None:
    cpu = context().cpu
    return None if cpu is None else kernel.percpu(RcuData)[cpu].cblist


RCU: Final = Flavour("rcu", lambda kernel: (kernel.rcu,), _this_cpu, "softirq")


@final
class rcu_read_lock(Guard):
    """A reader."""

    def enter(self) -> Iterator[Op[None]]:
        ctx = context()
        ctx.rcu_nesting += 1
        return ctx.settle("rcu_read_lock")

    def leave(self) -> Iterator[Op[None]]:
        ctx = context()
        ctx.rcu_nesting -= 1
        return ctx.settle("rcu_read_unlock")


def rcu_read_lock_held() -> bool:
    """Whether the running thread is between rcu_read_lock() and rcu_read_unlock()."""
    return context().rcu_nesting > 0


def rcu_dereference(place: Cell[T], *also_allowed: str) -> Op[T]:
    """Read a pointer inside a reader of rcu, or of a flavour that is `also_allowed`.

    The flavours are ``rcu_sched`` (preemption off), ``rcu_bh`` (bottom halves off) and
    ``rcu_tasks_trace``; `kernel_model.checks` reports a read outside all of them.
    """
    allowed = ("rcu", *also_allowed)
    return Op(ops.LOAD, "rcu_dereference", place.addr, place.size, place, allowed, ops.DEREF)


def rcu_dereference_raw(place: Cell[T]) -> Op[T]:
    """Read a pointer that something protects, which nobody checks."""
    return Op(ops.LOAD, "rcu_dereference_raw", place.addr, place.size, place, None, ops.DEREF)


def rcu_assign_pointer(place: Cell[T], value: T) -> Op[None]:
    """Publish a pointer and what it points to."""
    return Op(ops.STORE, "rcu_assign_pointer", place.addr, place.size, place, value, ops.RELEASE)


@kernel_function
async def synchronize_rcu(kernel: Kernel) -> None:
    """Sleep until every reader there is now has ended."""
    if kernel.preempt == "none" and len(kernel.cpus) == 1:
        await might_sleep()  # who gets here runs, so there is no reader
        return
    await __wait_rcu_gp("synchronize_rcu", kernel.rcu)


@kernel_function
async def call_rcu(kernel: Kernel, function: Callable[..., Body], *args: Any) -> None:
    """Have ``function(*args)`` called, in a softirq, after every reader there is now has ended."""
    await __call_rcu(kernel, RCU, function, args)


@kernel_function
async def rcu_barrier(kernel: Kernel) -> None:
    """Sleep until every callback queued so far has run; no grace period if there is none."""
    await __wait_rcu_gp("rcu_barrier", RCU.callbacks(kernel))

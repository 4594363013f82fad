"""kernel/rcu/tasks.h, v5.10: Tasks RCU, which waits until every task has slept or left the kernel.

Without preemption it is RCU.  With it, the sections cost steps, so that a kernel has it only
under ``config=frozenset({"TASKS_RCU"})``.

Not modelled: Tasks Rude RCU, cond_resched_tasks_rcu_qs(); a callback must not sleep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

from kernel_model.kernel import Kernel, kernel_function
from kernel_model.rcu.tree import call_rcu, rcu_barrier, synchronize_rcu
from kernel_model.rcu.update import Flavour, __call_rcu, __wait_rcu_gp
from sim.cells import Cell, Struct, cell
from sim.errors import MisuseError
from sim.sections import Domain, Section
from sim.threads import Body


@final
class RcuTasks(Struct):
    """What Tasks RCU keeps.

    cbs_tail  the latest callback queued
    """

    KIND = "rcu_tasks"
    cbs_tail: Cell[Section | None] = cell(None)


def _domains(kernel: Kernel) -> tuple[Domain, ...]:
    if kernel.preempt == "full" and "TASKS_RCU" not in kernel.config:
        raise MisuseError(
            "this kernel has no Tasks RCU to wait for: boot it with "
            'config=frozenset({"TASKS_RCU"}), or with preempt="none"'
        )
    return (kernel.rcu_tasks,)


TASKS: Final = Flavour(
    "rcu_tasks", _domains, lambda kernel: kernel.subsystem(RcuTasks).cbs_tail, "kthread"
)


@kernel_function
async def synchronize_rcu_tasks(kernel: Kernel) -> None:
    """Sleep until every task has slept or left the kernel."""
    if kernel.preempt == "none":
        await synchronize_rcu(kernel)
    else:
        await __wait_rcu_gp("synchronize_rcu_tasks", *_domains(kernel))


@kernel_function
async def call_rcu_tasks(kernel: Kernel, function: Callable[..., Body], *args: Any) -> None:
    """Have ``function(*args)`` called after every task has slept or left the kernel."""
    if kernel.preempt == "none":
        await call_rcu(kernel, function, *args)
    else:
        await __call_rcu(kernel, TASKS, function, args)


@kernel_function
async def rcu_barrier_tasks(kernel: Kernel) -> None:
    """Sleep until every callback queued so far has run, and for a grace period in any case."""
    if kernel.preempt == "none":
        await rcu_barrier(kernel)
    else:
        await __wait_rcu_gp("rcu_barrier_tasks", *_domains(kernel), TASKS.callbacks(kernel))

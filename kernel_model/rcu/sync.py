"""include/linux/rcupdate_wait.h, v5.10: wait for several flavours at once.

Not modelled: the callbacks with which the kernel waits; grace periods are waited for directly.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from kernel_model.kernel import Kernel, kernel_function
from kernel_model.rcu.tasks import TASKS, call_rcu_tasks
from kernel_model.rcu.tasks_trace import TRACE, call_rcu_tasks_trace
from kernel_model.rcu.tree import RCU, call_rcu
from kernel_model.rcu.update import __wait_rcu_gp
from sim.errors import MisuseError
from sim.ops import Op
from sim.sections import Domain

CallRcu = Callable[..., Coroutine[Op[Any], Any, None]]


@kernel_function
async def synchronize_rcu_mult(kernel: Kernel, *calls: CallRcu) -> None:
    """Sleep until the grace periods of the flavours, which run side by side, are over.

    Nothing is said about a task that is first a reader of one flavour and then of another.
    """
    domains: list[Domain] = []
    for call in calls:
        domains += [domain for domain in _domains(kernel, call) if domain not in domains]
    await __wait_rcu_gp("synchronize_rcu_mult", *domains)


def _domains(kernel: Kernel, call: CallRcu) -> tuple[Domain, ...]:
    if call is call_rcu:
        return RCU.domains(kernel)
    if call is call_rcu_tasks:
        return TASKS.domains(kernel)
    if call is call_rcu_tasks_trace:
        return TRACE.domains(kernel)
    raise MisuseError(f"synchronize_rcu_mult: {call!r} is not the call_rcu function of a flavour")

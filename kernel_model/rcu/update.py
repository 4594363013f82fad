"""kernel/rcu/update.c, v5.10: what the flavours have in common.

A grace period starts when it is asked for, which is the earliest moment possible; so whatever a
real one that starts later allows, this one allows.  Callbacks that share a queue run in its
order, one at a time.  A callback, from being queued until it has run, is a section of a domain
of its own; to wait for such sections is what `rcu_barrier` does.

Not modelled: batches, expedited and polled grace periods; that Tasks and Tasks Trace grace
periods happen to contain an RCU one (nobody may rely on it); that Tasks RCU waits for the thread
that runs Tasks Trace callbacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

from kernel_model.kernel import Kernel
from kernel_model.linux.preempt import local_bh_disable
from kernel_model.linux.task import (
    Kind,
    enter_kernel,
    idle_thread,
    leave_kernel,
    might_sleep,
    sleeping,
)
from sim.cells import Cell
from sim.macros import gp_end, gp_start, section_begin, section_end, xchg
from sim.sections import Domain, GracePeriod, Section
from sim.threads import Body, current

Started = list[tuple[Domain, GracePeriod]]


@final
@dataclass(frozen=True)
class Flavour:
    """How a flavour waits, and how it runs its callbacks.

    name     ``rcu``, ``rcu_tasks`` or ``rcu_tasks_trace``
    domains  of the sections that its grace periods wait for
    queue    holds the latest callback of the running thread's queue; None: it has no queue, so
             nothing is said about the order
    runner   what runs its callbacks
    """

    name: str
    domains: Callable[[Kernel], tuple[Domain, ...]]
    queue: Callable[[Kernel], Cell[Section | None] | None]
    runner: Kind

    def callbacks(self, kernel: Kernel) -> Domain:
        """The callbacks that are queued or run now, as sections."""
        return kernel.domain(f"{self.name}_callbacks", readers=False)


async def __wait_rcu_gp(name: str, *domains: Domain) -> None:
    """Sleep until every section of the domains that is open now has ended."""
    started: Started = []
    for domain in domains:
        started.append((domain, await gp_start(domain, name)))
    await might_sleep()
    async with sleeping(name):
        for domain, grace_period in started:
            await gp_end(domain, grace_period, name)


async def __call_rcu(
    kernel: Kernel, flavour: Flavour, function: Callable[..., Body], args: tuple[Any, ...]
) -> None:
    """Have ``function(*args)`` called after a grace period, and not wait for it."""
    name: Final = f"call_{flavour.name}"
    thread = current()
    runner: Final = f"{flavour.name}/{thread.name}-{thread.forks}"
    mine: Final = Section(runner, 0)
    await section_begin(flavour.callbacks(kernel), mine, name)
    queue = flavour.queue(kernel)
    before = None if queue is None else await xchg(queue, mine)
    started: Started = []
    for domain in flavour.domains(kernel):
        started.append((domain, await gp_start(domain, name)))
    if before is not None:
        started.append((flavour.callbacks(kernel), GracePeriod((before,))))
    call = (function, args)
    await idle_thread(
        kernel, rcu_do_batch, kernel, flavour, started, mine, call, name=runner, kind=flavour.runner
    )


async def rcu_do_batch(
    kernel: Kernel,
    flavour: Flavour,
    started: Started,
    mine: Section,
    call: tuple[Callable[..., Body], tuple[Any, ...]],
) -> None:
    """Wait for the grace period and the callbacks before this one, then call it."""
    current().context.tasks_reader = False
    for domain, grace_period in started:
        await gp_end(domain, grace_period, "rcu_do_batch")
    for op in enter_kernel("rcu_do_batch"):
        await op
    function, args = call
    async with local_bh_disable():
        await function(*args)
    for op in leave_kernel("rcu_do_batch"):
        await op
    await section_end(flavour.callbacks(kernel), mine, "rcu_do_batch")

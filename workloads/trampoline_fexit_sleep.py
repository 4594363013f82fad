"""May programs be attached to a function while a task sleeps in it?

Covers: a trampoline that calls the function itself, which sleeps; further programs attached, so
that the half of the page in use changes twice.
Scenario: a task calls the function, to which one fexit program is attached. Meanwhile as many
programs as asked are attached and stay.
Expect: the task comes back to the text that it has left.
"""

from __future__ import annotations

from kernel_model.bpf.ftrace import traced_function
from kernel_model.kernel import Kernel
from kernel_model.linux.task import task
from kernel_model.workload import kernel_workload
from sim.macros import join
from workloads.trampoline_update import FUNCTION, RETURN, Kind, attach, caller, sleepy


async def attacher(kernel: Kernel, kind: Kind, programs: int) -> None:
    """Attach programs one after another."""
    for _ in range(programs):
        await attach(kernel, kind, RETURN)


@kernel_workload(cpus=2, tasks_rcu=True)
async def trampoline_fexit_sleep(kernel: Kernel, *, programs: int = 2) -> None:
    function = traced_function(kernel, FUNCTION, sleepy)
    await attach(kernel, "fexit", RETURN)
    tasks = [
        await task(kernel, caller, kernel, function, 1, name="caller"),
        await task(kernel, attacher, kernel, "fexit", programs, name="attacher"),
    ]
    for thread in tasks:
        await join(thread)

"""May a half of a trampoline be written anew while a task has been preempted in it?

Covers: a trampoline with fentry programs only, on a function that does not sleep; what an update
waits for before it writes.
Scenario: a task calls the function. Meanwhile as many programs as asked are attached and stay.
Expect: the task finds in the trampoline what it has entered.
"""

from __future__ import annotations

from kernel_model.bpf.ftrace import traced_function
from kernel_model.kernel import Kernel
from kernel_model.linux.task import task
from kernel_model.workload import kernel_workload
from sim.macros import join
from workloads.trampoline_fexit_sleep import attacher
from workloads.trampoline_update import FUNCTION, RETURN, attach, busy, caller


@kernel_workload(cpus=2, tasks_rcu=True)
async def trampoline_halfpage(kernel: Kernel, *, programs: int = 2) -> None:
    function = traced_function(kernel, FUNCTION, busy)
    await attach(kernel, "fentry", RETURN)
    tasks = [
        await task(kernel, caller, kernel, function, 1, name="caller"),
        await task(kernel, attacher, kernel, "fentry", programs, name="attacher"),
    ]
    for thread in tasks:
        await join(thread)

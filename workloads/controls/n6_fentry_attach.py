"""May programs be attached to a function while a task has been preempted in its trampoline?

Covers: a trampoline with fentry programs that do not sleep; what an attachment waits for before it
writes a half of the page.
Scenario: a task calls the function, to which one program is attached. Meanwhile as many programs as
asked are attached, so that with two of them the half that the task may be in is written; none is
detached.
Expect: the task finds in the trampoline what it has entered.
"""

from __future__ import annotations

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.ftrace import traced_function
from kernel_model.bpf.hooks import bpf_raw_tracepoint_attach
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY
from kernel_model.kernel import Kernel
from kernel_model.linux.task import task
from kernel_model.workload import checked, kernel_workload
from sim.macros import join
from workloads.trampoline_update import FUNCTION, RETURN, attach, busy, caller


async def load(kernel: Kernel) -> int:
    """A descriptor of a program for the function."""
    fd = await bpf_load_program(
        kernel,
        BPF_PROG_TYPE_TRACING,
        assemble(RETURN),
        name="plain",
        expected_attach_type=BPF_TRACE_FENTRY,
        attach_to=FUNCTION,
    )
    return checked("program", fd)


async def attacher(kernel: Kernel, fds: tuple[int, ...]) -> None:
    """Attach programs one after another."""
    for fd in fds:
        checked("link", await bpf_raw_tracepoint_attach(kernel, "", fd))


@kernel_workload(cpus=2, tasks_rcu=True)
async def n6_fentry_attach(kernel: Kernel, *, runs: int = 1, programs: int = 2) -> None:
    function = traced_function(kernel, FUNCTION, busy)
    await attach(kernel, "fentry", RETURN)
    fds = tuple([await load(kernel) for _ in range(programs)])
    tasks = [
        await task(kernel, caller, kernel, function, runs, name="caller"),
        await task(kernel, attacher, kernel, fds, name="attacher"),
    ]
    for thread in tasks:
        await join(thread)

"""lib/fault-inject.c, fs/proc/base.c (v5.10): what fails although it need not

Either anything may fail, each time by choice (``Kernel.faults``); or a task has asked for one
failure: of the n-th thing that it does which can fail (/proc/thread-self/fail-nth).

Not modelled: probabilities, filters by stack or by size, and what is set for a whole process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernel_model.linux.task import context
from sim.macros import choose
from sim.threads import current

if TYPE_CHECKING:
    from kernel_model.kernel import Fault, Kernel


async def should_fail(kernel: Kernel, attr: Fault, name: str) -> bool:
    """Whether that what the running thread is about to do fails; `name` is what it does."""
    ctx = current().context
    if ctx is not None and ctx.fail_nth:
        ctx.fail_nth -= 1
        return bool(ctx.fail_nth == 0)
    return attr in kernel.faults and await choose(2, name) != 0


def proc_fail_nth_write(n: int) -> None:
    """The n-th thing that the running task does next and that can fail does; 0: nothing."""
    context().fail_nth = n

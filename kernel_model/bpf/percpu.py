"""include/linux/percpu-defs.h, include/linux/smp.h (v5.10): data of which every CPU has its own

Tasks run on the CPUs of the kernel. What runs on none of them (the thread that starts the tasks, a
kernel thread) has one more, which is the last.

Not modelled: static per-CPU data; that threads on the last CPU do not share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernel_model.linux.task import context

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


def num_possible_cpus(kernel: Kernel) -> int:
    return len(kernel.cpus) + 1


def smp_processor_id(kernel: Kernel) -> int:
    cpu = context().cpu
    return len(kernel.cpus) if cpu is None else cpu

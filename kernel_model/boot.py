"""Boot a kernel: all static state, in a fixed order, before the first thread runs.

Not modelled: the steps of booting.
"""

from __future__ import annotations

from typing import Any, Final

from kernel_model.bpf.capability import Credentials
from kernel_model.bpf.ftrace import Ftrace
from kernel_model.bpf.helpers import UserSpace
from kernel_model.bpf.hooks import Rtnl, Tracepoints
from kernel_model.bpf.ksym import BpfKsyms
from kernel_model.bpf.map_refs import MapIds
from kernel_model.bpf.prog import ProgIds
from kernel_model.bpf.prog_array import prog_array_map_ops
from kernel_model.bpf.syscall import Sysctls
from kernel_model.bpf.trampoline import Trampolines
from kernel_model.fixes import DEFAULT_VERSION, Fix, fixes_of
from kernel_model.kernel import Kernel
from kernel_model.linux.file import FdTable
from kernel_model.rcu.tasks import TASKS, RcuTasks
from kernel_model.rcu.tasks_trace import TRACE, RcuTasksTrace
from kernel_model.rcu.tree import RCU, RcuData
from kernel_model.x86.alternative import TextPatching
from sim.cells import Struct
from sim.memory import Memory

SUBSYSTEMS: Final[tuple[type[Struct], ...]] = (
    RcuTasks,
    RcuTasksTrace,
    FdTable,
    UserSpace,
    Credentials,
    Sysctls,
    MapIds,
    ProgIds,
    Tracepoints,
    Rtnl,
    BpfKsyms,
    TextPatching,
    Ftrace,
    Trampolines,
)

MODULES: Final = (prog_array_map_ops,)  # what makes itself known when it is imported


def boot(
    memory: Memory,
    version: str = DEFAULT_VERSION,
    fixes: frozenset[Fix] | None = None,
    **options: Any,
) -> Kernel:
    """A kernel of that version; `options` are those of :class:`Kernel`.

    fixes  in force (default: those of the version)
    """
    in_force = fixes_of(version) if fixes is None else fixes
    kernel = Kernel(memory, version, in_force, **options)
    for flavour in (RCU, TASKS, TRACE):
        flavour.callbacks(kernel)
    kernel.percpu(RcuData)
    for subsystem in SUBSYSTEMS:
        kernel.subsystem(subsystem)
    return kernel

"""How workloads run on the modelled kernel: version, fixes and configuration of a machine.

Not modelled: booting; a machine starts with its static state in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, final

from kernel_model.boot import boot
from kernel_model.checks import linux_detectors
from kernel_model.fixes import DEFAULT_VERSION, Fix, describe, fix_named, fixes_of
from kernel_model.kernel import NR_CPU_IDS, Kernel
from kernel_model.linux.errno import errno_name
from kernel_model.listing import text_listing
from sim.errors import UsageError
from sim.events import Detector
from sim.memory import Memory
from sim.threads import Body
from sim.workload import Parameter, Workload, file_digest, workload


@final
class LinuxMachine:
    """A kernel version with fixes and configuration: boots the same kernel every time."""

    def __init__(self, version: str, fixes: frozenset[Fix], params: Mapping[str, Any]) -> None:
        self.version: Final = version
        self.rewinds: Final = True
        self.fixes: Final = fixes
        self._params: Final = params
        self.digest: Final = _model_digest()
        self.environment: Final[Mapping[str, str]] = {
            "kernel": version,
            "fixes": " ".join(sorted(f.id for f in fixes)),
            "model": describe(version, fixes),
        }

    def boot(self, memory: Memory) -> Kernel:
        """A kernel for one execution."""
        return boot(
            memory,
            self.version,
            self.fixes,
            preempt=self._params["preempt"],
            cpus=self._params["cpus"],
            faults=frozenset({"usercopy", "slab"} if self._params["faults"] else ()),
            config=frozenset({"TASKS_RCU"} if self._params["tasks_rcu"] else ()),
        )

    def detectors(self) -> list[Detector]:
        """The Linux-only checks."""
        return linux_detectors()

    def listing(self, memory: Memory) -> list[str]:
        """All text that a kernel booted in `memory` has now."""
        return text_listing(memory)


@final
class LinuxModel:
    """The model of Linux; v5.10 unless a version is asked for.

    parameters  preempt; cpus; faults (allocations and user accesses may fail); tasks_rcu
                (CONFIG_TASKS_RCU: costs steps, so only for who waits for that flavour)
    """

    parameters: tuple[Parameter, ...] = (
        Parameter("preempt", "full", ("none", "full")),
        Parameter("cpus", NR_CPU_IDS),
        Parameter("faults", default=False),
        Parameter("tasks_rcu", default=False),
    )

    def configure(
        self,
        version: str | None,
        add: Sequence[str],
        remove: Sequence[str],
        params: Mapping[str, Any],
    ) -> LinuxMachine:
        """The machine of that version and fixes; UsageError for unknown or impossible ones."""
        asked = version or DEFAULT_VERSION
        return LinuxMachine(asked, fixes_of(asked, add, remove), params)

    def restore(self, environment: Mapping[str, str], params: Mapping[str, Any]) -> LinuxMachine:
        """The machine that a trace was made on; UsageError for a fix that is not modelled."""
        fixes = frozenset(fix_named(name) for name in environment.get("fixes", "").split())
        return LinuxMachine(environment.get("kernel", DEFAULT_VERSION), fixes, params)


def kernel_workload(**defaults: Any) -> Callable[[Callable[..., Body]], Workload]:
    """Make a workload whose first argument is the booted kernel."""
    return workload(LinuxModel(), **defaults)


def checked(what: str, result: int, log: bytes | bytearray = b"") -> int:
    """`result` of a system call that the workload cannot do without.

    Raises UsageError if it is an error: this kernel does not offer what the workload asks about.
    """
    if result >= 0:
        return result
    reason = bytes(log).decode().strip().splitlines()
    raise UsageError(
        f"this kernel refuses the workload's {what}: -{errno_name(-result)}"
        + (f": {': '.join(reason[-2:])}" if reason else "")  # the instruction, and what is wrong
    )


@cache
def _model_digest() -> str:
    """sha256 over the model's sources, by path."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()} {file_digest(path)}\n".encode())
    return digest.hexdigest()

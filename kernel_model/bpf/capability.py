"""include/linux/capability.h, include/linux/bpf.h (v5.10): who may do what with BPF

A task may do everything until it drops its capabilities.

Not modelled: capabilities one by one, user namespaces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from sim.cells import Struct
from sim.threads import current

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


@final
class Credentials(Struct):
    """The tasks that have dropped their capabilities: each only ever asks about itself."""

    KIND = "credentials"

    def __init__(self) -> None:
        self.unprivileged: Final[dict[str, None]] = {}


def drop_capabilities(kernel: Kernel) -> None:
    """The running task becomes one of an ordinary user."""
    kernel.subsystem(Credentials).unprivileged[current().name] = None


def bpf_capable(kernel: Kernel) -> bool:
    return current().name not in kernel.subsystem(Credentials).unprivileged


def bpf_bypass_spec_v1(kernel: Kernel) -> bool:
    return bpf_capable(kernel)

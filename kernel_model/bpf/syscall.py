"""kernel/bpf/syscall.c (v5.10): bpf(2)

What it does with maps is in `kernel_model.bpf.map_create` and `kernel_model.bpf.map_elem`; maps are
counted and freed in `kernel_model.bpf.map_refs`. Other modules add their commands.

Not modelled: security modules.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

from kernel_model.bpf.attr import (
    BPF_MAP_CREATE,
    BPF_MAP_DELETE_ELEM,
    BPF_MAP_FREEZE,
    BPF_MAP_GET_FD_BY_ID,
    BPF_MAP_GET_NEXT_KEY,
    BPF_MAP_LOOKUP_ELEM,
    BPF_MAP_UPDATE_ELEM,
    BPF_PROG_BIND_MAP,
    SIZEOF_BPF_ATTR,
    BpfAttr,
    GetIdAttr,
    MapCreateAttr,
    MapElemAttr,
)
from kernel_model.bpf.capability import bpf_capable
from kernel_model.bpf.map import PAGE_SIZE
from kernel_model.bpf.map_create import map_create
from kernel_model.bpf.map_elem import (
    map_delete_elem,
    map_freeze,
    map_get_next_key,
    map_lookup_elem,
    map_update_elem,
)
from kernel_model.bpf.map_refs import bpf_map_get_fd_by_id
from kernel_model.bpf.uaccess import copy_from_user
from kernel_model.linux.errno import E2BIG, EFAULT, EINVAL, EPERM
from sim.cells import Cell, Struct, cell
from sim.errors import MisuseError
from sim.macros import load

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel

A = TypeVar("A", bound=BpfAttr)
Command = Callable[["Kernel", A], Coroutine[Any, Any, int]]

_commands: Final[dict[int, tuple[type[BpfAttr], Command[Any]]]] = {}


def bpf_command(cmd: int, attr_type: type[A], command: Command[A]) -> None:
    """Make `command` what bpf(2) does for `cmd`, with attributes of that type."""
    _commands[cmd] = (attr_type, command)


bpf_command(BPF_MAP_CREATE, MapCreateAttr, map_create)
bpf_command(BPF_MAP_LOOKUP_ELEM, MapElemAttr, map_lookup_elem)
bpf_command(BPF_MAP_UPDATE_ELEM, MapElemAttr, map_update_elem)
bpf_command(BPF_MAP_DELETE_ELEM, MapElemAttr, map_delete_elem)
bpf_command(BPF_MAP_GET_NEXT_KEY, MapElemAttr, map_get_next_key)
bpf_command(BPF_MAP_FREEZE, MapElemAttr, map_freeze)
bpf_command(BPF_MAP_GET_FD_BY_ID, GetIdAttr, bpf_map_get_fd_by_id)


@final
class Sysctls(Struct):
    """What the administrator has set."""

    KIND = "sysctl"

    unprivileged_bpf_disabled: Cell[int] = cell(0)


async def sys_bpf(kernel: Kernel, cmd: int, attr: BpfAttr | None) -> int:
    """bpf(2): the result, or -errno."""
    if not bpf_capable(kernel):
        if await load(kernel.subsystem(Sysctls).unprivileged_bpf_disabled):
            return -EPERM
    if attr is None:
        return -EFAULT
    error = bpf_check_uarg_tail_zero(attr)
    if error:
        return error
    if isinstance(await copy_from_user(kernel, b"", 0), int):
        return -EFAULT
    if not 0 <= cmd <= BPF_PROG_BIND_MAP:
        return -EINVAL
    if cmd not in _commands:
        raise MisuseError(f"the command {cmd} of bpf(2) is not modelled")
    attr_type, command = _commands[cmd]
    if not isinstance(attr, attr_type):
        raise MisuseError(f"the command {cmd} of bpf(2) takes {attr_type.__name__}: got {attr!r}")
    return await command(kernel, attr)


def bpf_check_uarg_tail_zero(attr: BpfAttr) -> int:
    if attr.attr_size > PAGE_SIZE:
        return -E2BIG
    if attr.attr_size <= SIZEOF_BPF_ATTR:
        return 0
    return -E2BIG if attr.unknown_tail else 0

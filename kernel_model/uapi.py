"""tools/lib/bpf/bpf.c (v5.10): system calls as workloads make them, by libbpf's names

What libbpf returns as -1 and errno is -errno here.

Not modelled: names and NUMA nodes of maps, BTF; batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernel_model.bpf.attr import (
    BPF_MAP_CREATE,
    BPF_MAP_DELETE_ELEM,
    BPF_MAP_FREEZE,
    BPF_MAP_GET_FD_BY_ID,
    BPF_MAP_GET_NEXT_KEY,
    BPF_MAP_LOOKUP_ELEM,
    BPF_MAP_UPDATE_ELEM,
    BpfAttr,
    GetIdAttr,
    MapCreateAttr,
    MapElemAttr,
)
from kernel_model.bpf.syscall import sys_bpf
from kernel_model.linux.file import close_fd
from kernel_model.linux.task import syscall

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel


async def bpf(kernel: Kernel, cmd: int, attr: BpfAttr | None) -> int:
    """The system call itself."""
    async with syscall(kernel, "bpf"):
        return await sys_bpf(kernel, cmd, attr)


async def bpf_create_map(
    kernel: Kernel,
    map_type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    map_flags: int = 0,
) -> int:
    """The descriptor of a new map."""
    attr = MapCreateAttr(
        map_type=map_type,
        key_size=key_size,
        value_size=value_size,
        max_entries=max_entries,
        map_flags=map_flags,
    )
    return await bpf(kernel, BPF_MAP_CREATE, attr)


async def bpf_create_map_in_map(
    kernel: Kernel,
    map_type: int,
    key_size: int,
    inner_map_fd: int,
    max_entries: int,
    map_flags: int = 0,
) -> int:
    """The descriptor of a new map of maps that are like the inner one."""
    attr = MapCreateAttr(
        map_type=map_type,
        key_size=key_size,
        value_size=4,
        inner_map_fd=inner_map_fd,
        max_entries=max_entries,
        map_flags=map_flags,
    )
    return await bpf(kernel, BPF_MAP_CREATE, attr)


async def bpf_map_update_elem(
    kernel: Kernel, fd: int, key: bytes | None, value: bytes | None, flags: int = 0
) -> int:
    """Write an element; the value of a map of maps is a descriptor (see `u32`)."""
    attr = MapElemAttr(map_fd=fd, key=key, value=value, flags=flags)
    return await bpf(kernel, BPF_MAP_UPDATE_ELEM, attr)


async def bpf_map_lookup_elem(
    kernel: Kernel, fd: int, key: bytes | None, flags: int = 0
) -> bytes | int:
    """The value of an element; of a map of maps: the id of the inner map."""
    value = bytearray()
    attr = MapElemAttr(map_fd=fd, key=key, value=value, flags=flags)
    return await bpf(kernel, BPF_MAP_LOOKUP_ELEM, attr) or bytes(value)


async def bpf_map_delete_elem(kernel: Kernel, fd: int, key: bytes | None) -> int:
    """Delete an element."""
    return await bpf(kernel, BPF_MAP_DELETE_ELEM, MapElemAttr(map_fd=fd, key=key))


async def bpf_map_get_next_key(kernel: Kernel, fd: int, key: bytes | None) -> bytes | int:
    """The key after `key`, None: the first one."""
    next_key = bytearray()
    attr = MapElemAttr(map_fd=fd, key=key, value=next_key)
    return await bpf(kernel, BPF_MAP_GET_NEXT_KEY, attr) or bytes(next_key)


async def bpf_map_get_fd_by_id(kernel: Kernel, id: int) -> int:
    """A descriptor of the map with that id."""
    return await bpf(kernel, BPF_MAP_GET_FD_BY_ID, GetIdAttr(id=id))


async def bpf_map_freeze(kernel: Kernel, fd: int) -> int:
    """Let system calls write no more to the map."""
    return await bpf(kernel, BPF_MAP_FREEZE, MapElemAttr(map_fd=fd))


async def close(kernel: Kernel, fd: int) -> int:
    """Close a descriptor."""
    async with syscall(kernel, "close"):
        return await close_fd(kernel, fd)


def u32(value: int) -> bytes:
    """A number or a descriptor as a key or a value of 4 bytes."""
    return value.to_bytes(4, "little")

"""include/uapi/linux/bpf.h (v5.10): commands and attributes of bpf(2), types and flags of maps

User memory is not modelled memory: what a pointer of an attribute points to is a Python buffer.
None is the NULL pointer, `bytes` shorter than what the kernel reads end in an unmapped page, and a
`bytearray` takes whatever the kernel writes.

Not modelled: an attribute passed with a size smaller than the kernel's (the rest reads as zero);
the attributes of other commands overlaid on the same bytes; BTF (an attribute says outright where
a map's value has its `struct bpf_spin_lock`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Commands, up to the last one that v5.10 knows.
BPF_MAP_CREATE: Final = 0
BPF_MAP_LOOKUP_ELEM: Final = 1
BPF_MAP_UPDATE_ELEM: Final = 2
BPF_MAP_DELETE_ELEM: Final = 3
BPF_MAP_GET_NEXT_KEY: Final = 4
BPF_PROG_LOAD: Final = 5
BPF_MAP_GET_FD_BY_ID: Final = 14
BPF_MAP_FREEZE: Final = 22
BPF_PROG_BIND_MAP: Final = 35

# enum bpf_map_type
BPF_MAP_TYPE_HASH: Final = 1
BPF_MAP_TYPE_ARRAY: Final = 2
BPF_MAP_TYPE_PROG_ARRAY: Final = 3
BPF_MAP_TYPE_PERF_EVENT_ARRAY: Final = 4
BPF_MAP_TYPE_PERCPU_ARRAY: Final = 6
BPF_MAP_TYPE_ARRAY_OF_MAPS: Final = 12
BPF_MAP_TYPE_HASH_OF_MAPS: Final = 13
BPF_MAP_TYPE_INODE_STORAGE: Final = 28  # the last one of v5.10

# Flags of BPF_MAP_UPDATE_ELEM.
BPF_ANY: Final = 0
BPF_NOEXIST: Final = 1
BPF_EXIST: Final = 2
BPF_F_LOCK: Final = 4

# Flags of BPF_MAP_CREATE.
BPF_F_NO_PREALLOC: Final = 1 << 0
BPF_F_NO_COMMON_LRU: Final = 1 << 1
BPF_F_NUMA_NODE: Final = 1 << 2
BPF_F_RDONLY: Final = 1 << 3
BPF_F_WRONLY: Final = 1 << 4
BPF_F_ZERO_SEED: Final = 1 << 6
BPF_F_RDONLY_PROG: Final = 1 << 7
BPF_F_WRONLY_PROG: Final = 1 << 8
BPF_F_MMAPABLE: Final = 1 << 10
BPF_F_PRESERVE_ELEMS: Final = 1 << 11
BPF_F_INNER_MAP: Final = 1 << 12
BPF_F_ACCESS_MASK: Final = BPF_F_RDONLY | BPF_F_RDONLY_PROG | BPF_F_WRONLY | BPF_F_WRONLY_PROG

SIZEOF_BPF_ATTR: Final = 120  # sizeof(union bpf_attr)
BPF_OBJ_NAME_LEN: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BpfAttr:
    """`union bpf_attr` as user space passes it; each command has a subclass.

    attr_size     the third argument of bpf(2)
    unknown_tail  whether a byte behind what the kernel knows is not zero
    unused_tail   whether a byte behind the command's last field is not zero
    """

    attr_size: int = SIZEOF_BPF_ATTR
    unknown_tail: bool = False
    unused_tail: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MapCreateAttr(BpfAttr):
    """BPF_MAP_CREATE.

    spin_lock_off  where BTF says that a value has its `struct bpf_spin_lock`; None: it has none
    """

    map_type: int
    key_size: int
    value_size: int
    max_entries: int
    map_flags: int = 0
    inner_map_fd: int = 0
    numa_node: int = 0
    map_name: str = ""
    spin_lock_off: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GetIdAttr(BpfAttr):
    """BPF_MAP_GET_FD_BY_ID."""

    id: int
    open_flags: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MapElemAttr(BpfAttr):
    """BPF_MAP_*_ELEM, BPF_MAP_GET_NEXT_KEY and, with nothing but `map_fd`, BPF_MAP_FREEZE.

    value  what is written or where the result goes; also what C calls `next_key`
    """

    map_fd: int
    key: bytes | None = None
    value: bytes | bytearray | None = None
    flags: int = 0

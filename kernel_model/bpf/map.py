"""include/linux/bpf.h, kernel/bpf/helpers.c (v5.10): maps, what their types can do, their values

A map is one object with the kernel's offsets (x86-64), so that programs can compute addresses in
it. Whoever holds a reference reads the map's immutable fields as plain attributes
(`map.max_entries`), which is no step. A program that found an inner map holds no reference: what
runs for it reads the memory itself (`await load(map.field("max_entries"))`), once per function
before anything else of the map; that load stands for the loads of the other immutable fields.

Not modelled: BTF, offloaded maps, memory accounting, mmap of values.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar, final

from kernel_model.bpf.attr import (
    BPF_F_RDONLY,
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY,
    BPF_F_WRONLY_PROG,
    MapCreateAttr,
)
from kernel_model.linux.errno import E2BIG
from kernel_model.linux.preempt import preempt_off, preempt_on
from kernel_model.linux.spinlock import spin_lock_irqsave
from kernel_model.linux.task import Guard, context
from kernel_model.linux.workqueue import WorkData
from sim import ops
from sim.cells import Bytes, Cell, Lvalue, Struct, cell
from sim.macros import load, store
from sim.ops import Op
from sim.threads import Thread

if TYPE_CHECKING:
    from kernel_model.bpf.insn import Insn
    from kernel_model.kernel import Kernel
    from kernel_model.linux.file import File

T = TypeVar("T")
M = TypeVar("M", bound="BpfMap")

MAP_VALUE_RACES: Final = "map values are read and written without locks by design"
ID_RACES: Final = "an id is a snapshot, stale perhaps when user space gets it"
SIZEOF_BPF_MAP: Final = 256
SIZEOF_BPF_SPIN_LOCK: Final = 4
KMALLOC_MAX_SIZE: Final = 1 << 22
U32_MAX: Final = (1 << 32) - 1
PAGE_SIZE: Final = 4096
MAP_OPS_TABLES: Final = 0xFFFF_FFFF_81E0_0000  # the kernel's read-only data


class ValuePtr(NamedTuple):
    """A pointer to a map value: an offset in a region of bytes."""

    region: Bytes
    offset: int

    @property
    def addr(self) -> int:
        """What the pointer is in a register."""
        return self.region.addr + self.offset


@dataclass(frozen=True, kw_only=True)
class MapOps(Generic[M]):
    """struct bpf_map_ops: the functions of a map type, None where it has none.

    Keys and values are bytes where C passes pointers; where C returns a pointer or an error
    pointer, an int is -errno.
    """

    map_type: int
    map_alloc_check: Callable[[Kernel, MapCreateAttr], int]
    map_alloc: Callable[[Kernel, MapCreateAttr], Awaitable[M | int]]
    map_free: Callable[[Kernel, M], Awaitable[None]]
    map_get_next_key: Callable[[Kernel, M, bytes | None], Awaitable[bytes | int]]
    map_lookup_elem: Callable[[Kernel, M, bytes], Awaitable[ValuePtr | BpfMap | int | None]]
    map_update_elem: Callable[[Kernel, M, bytes, bytes, int], Awaitable[int]] | None = None
    map_delete_elem: Callable[[Kernel, M, bytes], Awaitable[int]]
    map_gen_lookup: Callable[[M], Sequence[Insn] | int] | None = None
    map_meta_equal: Callable[[BpfMap, BpfMap], bool] | None = None
    map_fd_get_ptr: Callable[[Kernel, M, File, int], Awaitable[Any]] | None = None
    map_fd_put_ptr: Callable[[Kernel, M, Any, bool], Awaitable[None]] | None = None
    map_fd_sys_lookup_elem: Callable[[Kernel, Any], Awaitable[int]] | None = None
    map_release: Callable[[Kernel, M, File], Awaitable[None]] | None = None
    map_release_uref: Callable[[Kernel, M], Awaitable[None]] | None = None

    map_poke_track: Callable[[Kernel, M, Any], Awaitable[int]] | None = None
    map_poke_untrack: Callable[[Kernel, M, Any], Awaitable[None]] | None = None
    map_poke_run: Callable[[Kernel, M, int, Any, Any], Awaitable[None]] | None = None

    @property
    def addr(self) -> int:
        """Where the table is."""
        return MAP_OPS_TABLES + (self.map_type << 9)


class Packed(Struct):
    """An object with cells inside its regions of bytes, or in arrays of structures."""

    def __init__(self) -> None:
        self.suffixes: Final[dict[int, str]] = {}

    def embed(self, suffix: str, offset: int, size: int, value: T) -> Cell[T]:
        """Put a cell at `offset`, before others see the object; `suffix` completes its label."""
        made = Cell(self, self.addr + offset, size, value)
        self._at[offset] = made
        self.suffixes[made.addr] = suffix
        self.size = max(self.size, offset + size)
        return made

    def field_name(self, place: Lvalue[Any]) -> str:
        """How the field at `place` is written after the object: ``[2].lock``."""
        return self.suffixes.get(place.addr) or super().field_name(place)


class MapShape(Protocol):
    """What a new map and its template have in common with what they are made after."""

    @property
    def map_type(self) -> int: ...
    @property
    def key_size(self) -> int: ...
    @property
    def value_size(self) -> int: ...
    @property
    def max_entries(self) -> int: ...
    @property
    def map_flags(self) -> int: ...
    @property
    def spin_lock_off(self) -> int | None: ...


class BpfMap(Packed):
    """struct bpf_map: what all maps begin with.

    refcnt          all references; usercnt: those of user space (file descriptors)
    id              0 once the last reference is gone
    work            frees the map
    frozen          system calls write no more; changes under freeze_mutex
    free_after_mult_rcu_gp  it was taken out of an outer map (with DEFER_INNER_MAP_FREE)
    ops             its type's functions
    inner_map_meta  of an outer map: the template that its inner maps equal
    spin_lock_off   where a value has its `struct bpf_spin_lock`, None: nowhere
    bypass_spec_v1  its creator is trusted not to abuse speculation
    """

    KIND = "bpf_map"

    id: Cell[int] = cell(0, offset=48, size=4, legal_races=ID_RACES)
    frozen: Cell[bool] = cell(False, offset=109, size=1)
    free_after_mult_rcu_gp: Cell[bool] = cell(False, offset=110, size=1)
    refcnt: Cell[int] = cell(1, offset=128)
    usercnt: Cell[int] = cell(1, offset=136)
    work: Cell[WorkData] = cell(None, offset=144)
    freeze_mutex: Cell[Thread | None] = cell(None, offset=176)

    ops: MapOps[Any]
    inner_map_meta: BpfMap | None = None
    map_type: int
    key_size: int
    value_size: int
    max_entries: int
    map_flags: int
    bypass_spec_v1: bool

    def __init__(self, like: MapShape, *, bypass_spec_v1: bool = True) -> None:
        super().__init__()
        self.size = SIZEOF_BPF_MAP
        self.spin_lock_off: Final = like.spin_lock_off
        self._constants: dict[str, Cell[Any]] = {}
        self.set_constant("map_type", 24, 4, like.map_type)
        self.set_constant("key_size", 28, 4, like.key_size)
        self.set_constant("value_size", 32, 4, like.value_size)
        self.set_constant("max_entries", 36, 4, like.max_entries)
        self.set_constant("map_flags", 40, 4, like.map_flags & ~(BPF_F_RDONLY | BPF_F_WRONLY))
        self.set_constant("bypass_spec_v1", 108, 1, bypass_spec_v1)

    def set_constant(self, name: str, offset: int, size: int, value: object) -> None:
        """Give an immutable field its value, before others see the map."""
        setattr(self, name, value)
        self._constants[name] = self.embed(f".{name}", offset, size, value)

    def set_ops(self, ops: MapOps[Any]) -> None:
        """``map->ops = ops``, before others see the map."""
        self.set_constant("ops", 0, 8, ops)

    def set_inner_map_meta(self, inner_map_meta: BpfMap) -> None:
        """``map->inner_map_meta = inner_map_meta``, before others see the map."""
        self.set_constant("inner_map_meta", 8, 8, inner_map_meta)

    def field(self, name: str) -> Cell[Any]:
        """The memory of an immutable field, for who holds no reference."""
        return self._constants[name]


def map_value_has_spin_lock(map: BpfMap) -> bool:
    return map.spin_lock_off is not None


def bpf_map_meta_equal(meta0: BpfMap, meta1: BpfMap) -> bool:
    return (
        meta0.map_type == meta1.map_type
        and meta0.key_size == meta1.key_size
        and meta0.value_size == meta1.value_size
        and meta0.map_flags == meta1.map_flags
    )


def bpf_map_flags_access_ok(access_flags: int) -> bool:
    both = BPF_F_RDONLY_PROG | BPF_F_WRONLY_PROG
    return access_flags & both != both


def bpf_map_charge_init(size: int) -> int:
    """Whether a map of that size is thinkable: 0 or -E2BIG."""
    return -E2BIG if size >= U32_MAX - PAGE_SIZE else 0


def read_pointer_once(place: Cell[T]) -> Op[T]:
    """READ_ONCE() of a pointer: what is read through it depends on it, hence is ordered after."""
    return Op(ops.LOAD, "READ_ONCE", place.addr, place.size, place, None, ops.DEREF)


def round_up(value: int, to: int) -> int:
    return (value + to - 1) // to * to


@final
class bpf_disable_instrumentation(Guard):
    """No preemption, and no program of a tracing kind on this CPU."""

    def enter(self) -> Iterator[Op[Any]]:
        """bpf_disable_instrumentation()."""
        yield from preempt_off("bpf_disable_instrumentation")
        context().bpf_prog_active += 1

    def leave(self) -> Iterator[Op[Any]]:
        """bpf_enable_instrumentation()."""
        context().bpf_prog_active -= 1
        yield from preempt_on("bpf_enable_instrumentation")


# -- values --------------------------------------------------------------------------------------


@cache
def words(start: int, end: int) -> tuple[tuple[int, int], ...]:
    """The aligned words, as (offset, size), in which memcpy moves the bytes `start` to `end`."""
    found = []
    while start < end:
        size = 8
        while start % size or start + size > end:
            size //= 2
        found.append((start, size))
        start += size
    return tuple(found)


@cache
def unlocked_words(value_size: int, spin_lock_off: int | None) -> tuple[tuple[int, int], ...]:
    """The words of a value, without its lock."""
    if spin_lock_off is None:
        return words(0, value_size)
    return words(0, spin_lock_off) + words(spin_lock_off + SIZEOF_BPF_SPIN_LOCK, value_size)


async def copy_map_value(map: BpfMap, dst: ValuePtr, src: bytes) -> None:
    """Overwrite the value at `dst`, but not its lock."""
    region, offset = dst
    for at, size in unlocked_words(map.value_size, map.spin_lock_off):
        word = int.from_bytes(src[at : at + size], "little")
        await store(region.word(offset + at, size), word)


async def read_map_value(map: BpfMap, src: ValuePtr) -> bytes:
    """What copy_map_value and check_and_init_map_lock leave in a buffer: the lock reads as 0."""
    region, offset = src
    value = bytearray(map.value_size)
    for at, size in unlocked_words(map.value_size, map.spin_lock_off):
        word = await load(region.word(offset + at, size))
        value[at : at + size] = word.to_bytes(size, "little")
    return bytes(value)


async def copy_map_value_locked(map: BpfMap, dst: ValuePtr, src: bytes) -> None:
    """Overwrite the value at `dst` under its lock."""
    async with spin_lock_irqsave(map_value_lock(map, dst)):
        await copy_map_value(map, dst, src)


async def read_map_value_locked(map: BpfMap, src: ValuePtr) -> bytes:
    """The value at `src`, read under its lock."""
    async with spin_lock_irqsave(map_value_lock(map, src)):
        return await read_map_value(map, src)


def map_value_lock(map: BpfMap, value: ValuePtr) -> Cell[Thread | None]:
    """The `struct bpf_spin_lock` in a value."""
    owner = value.region.owner
    assert map.spin_lock_off is not None
    place = owner.lvalue(value.addr + map.spin_lock_off - owner.addr, SIZEOF_BPF_SPIN_LOCK)
    assert isinstance(place, Cell)
    return place

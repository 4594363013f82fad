"""kernel/bpf/helpers.c, kernel/trace/bpf_trace.c (v5.10): functions that programs call by number

A helper is called with the run of the program and the values of the argument registers; pointers
are addresses, in the run's private memory or in modelled memory. `HELPERS` has what the verifier
must know of each, `MAP_OPS` the functions of a map type that calls are patched to.

Random numbers and failing copies are choices: `bpf_get_prandom_u32` returns one of `PRANDOM_U32`,
and `bpf_copy_from_user` fails by choice under the fault "usercopy". It always sleeps, as if the
page had to be read in, and on its return fetches the next instruction, so that running a program
that was freed meanwhile is noticed.

Not modelled: all other helpers; user memory that changes; `copy_from_user` that need not sleep; a
warning of `bpf_get_smp_processor_id` in preemptible programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, NamedTuple, final

from kernel_model.bpf.core import BpfCall, BpfRun
from kernel_model.bpf.hashtab import HTAB_MAP_LOOKUP_ELEM, __htab_map_lookup_elem
from kernel_model.bpf.helper_ids import BPF_FUNC
from kernel_model.bpf.htab_alloc import BpfHtab
from kernel_model.bpf.map import SIZEOF_BPF_SPIN_LOCK, BpfMap
from kernel_model.bpf.percpu import smp_processor_id
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import EFAULT
from kernel_model.linux.fault_inject import should_fail
from kernel_model.linux.preempt import irqs_off, irqs_on
from kernel_model.linux.task import context, might_fault, sleeping
from kernel_model.rcu.tree import rcu_read_lock_held
from sim.cells import Cell, Struct
from sim.clock import now
from sim.errors import MisuseError
from sim.macros import choose, load_at, lock, note, unlock
from sim.threads import Thread

U32: Final = 0xFFFF_FFFF
TASK_SIZE: Final = 0x7FFF_FFFF_F000
PRANDOM_U32: Final = (0, U32)


class Arg(Enum):
    """enum bpf_arg_type"""

    CTX = "ctx"
    ANYTHING = "any initialised value"
    CONST_MAP_PTR = "map_ptr"
    MAP_KEY = "readable, as large as a key"
    MAP_VALUE = "readable, as large as a value"
    UNINIT_MEM = "writable, as large as the next argument says"
    CONST_SIZE_OR_ZERO = "a size"
    SPIN_LOCK = "a bpf_spin_lock in a map value"


class Ret(Enum):
    """enum bpf_return_type"""

    INTEGER = "inv"
    VOID = "?"
    MAP_VALUE_OR_NULL = "map_value_or_null"


class BpfFuncProto(NamedTuple):
    """struct bpf_func_proto"""

    call: BpfCall
    ret: Ret
    args: tuple[Arg, ...]


# -- maps ----------------------------------------------------------------------------------------


def map_at(run: BpfRun, addr: int) -> BpfMap:
    """The map that an argument points to; an error of the program if there is none."""
    found = run.kernel.memory.object_at(addr)
    if isinstance(found, BpfMap) and found.addr == addr:
        return found
    raise run.error(run.at, f"there is no map at {addr:#x}")


async def map_lookup_elem(run: BpfRun, map_addr: int, key_addr: int) -> int:
    map = map_at(run, map_addr)
    key = await run.read(key_addr, map.key_size)
    found = await map.ops.map_lookup_elem(run.kernel, map, key)
    if found is None or isinstance(found, int):
        return found or 0
    return found.addr


async def map_update_elem(
    run: BpfRun, map_addr: int, key_addr: int, value_addr: int, flags: int
) -> int:
    map = map_at(run, map_addr)
    assert map.ops.map_update_elem is not None  # the verifier saw to it
    key = await run.read(key_addr, map.key_size)
    value = await run.read(value_addr, map.value_size)
    return await map.ops.map_update_elem(run.kernel, map, key, value, flags)


async def map_delete_elem(run: BpfRun, map_addr: int, key_addr: int) -> int:
    map = map_at(run, map_addr)
    return await map.ops.map_delete_elem(run.kernel, map, await run.read(key_addr, map.key_size))


async def htab_lookup(run: BpfRun, map_addr: int, key_addr: int) -> int:
    """What the inlined look-up in a hash calls; the program then finds the value itself."""
    htab = map_at(run, map_addr)
    assert isinstance(htab, BpfHtab)
    key = await run.read(key_addr, htab.key_size)
    found = await __htab_map_lookup_elem(run.kernel, htab, key)
    return 0 if found is None else found.addr


async def _generic(run: BpfRun, name: str, map_addr: int) -> None:
    """What the helpers do before they call ``map->ops``."""
    if not rcu_read_lock_held():
        await note("WARN", f"{name} outside of rcu_read_lock()")
    await load_at(map_addr, 8)


async def bpf_map_lookup_elem(run: BpfRun, map_addr: int, key_addr: int) -> int:
    await _generic(run, "bpf_map_lookup_elem", map_addr)
    return await map_lookup_elem(run, map_addr, key_addr)


async def bpf_map_update_elem(
    run: BpfRun, map_addr: int, key_addr: int, value_addr: int, flags: int
) -> int:
    await _generic(run, "bpf_map_update_elem", map_addr)
    return await map_update_elem(run, map_addr, key_addr, value_addr, flags)


async def bpf_map_delete_elem(run: BpfRun, map_addr: int, key_addr: int) -> int:
    await _generic(run, "bpf_map_delete_elem", map_addr)
    return await map_delete_elem(run, map_addr, key_addr)


# -- the lock in a map value ---------------------------------------------------------------------


def _lock_at(run: BpfRun, addr: int) -> Cell[Thread | None]:
    owner = run.kernel.memory.object_at(addr)
    place = None if owner is None else owner.lvalue(addr - owner.addr, SIZEOF_BPF_SPIN_LOCK)
    if isinstance(place, Cell):
        return place
    raise run.error(run.at, f"there is no bpf_spin_lock at {addr:#x}")


async def bpf_spin_lock(run: BpfRun, addr: int) -> int:
    place = _lock_at(run, addr)
    for op in irqs_off("bpf_spin_lock"):
        await op
    await lock(place, "bpf_spin_lock")
    context().locks.append(place)
    return 0


async def bpf_spin_unlock(run: BpfRun, addr: int) -> int:
    place = _lock_at(run, addr)
    context().forget_lock(place)
    await unlock(place, "bpf_spin_unlock")
    for op in irqs_on("bpf_spin_unlock"):
        await op
    return 0


# -- user memory ---------------------------------------------------------------------------------


@final
class UserSpace(Struct):
    """What is mapped below TASK_SIZE: areas of constant bytes by address."""

    KIND = "mm_struct"

    def __init__(self) -> None:
        self.areas: Final[dict[int, bytes]] = {}

    def readable(self, addr: int, size: int) -> bytes:
        """The bytes from `addr` on, up to the first one that is not mapped."""
        for start, data in self.areas.items():
            if start <= addr < start + len(data):
                return data[addr - start : addr - start + size]
        return b""


@final
class UserMemory:
    """Bytes that user space has mapped at `addr`; a program copies from there."""

    def __init__(self, kernel: Kernel, data: bytes, addr: int = 0x40_0000) -> None:
        areas = kernel.subsystem(UserSpace).areas
        end = addr + len(data)
        if not 0 < addr <= end <= TASK_SIZE:
            raise MisuseError(f"user memory lies below {TASK_SIZE:#x}, not at {addr:#x}")
        if areas.get(addr) != data:  # a task that is made anew maps the same once more
            if any(addr < start + len(other) and start < end for start, other in areas.items()):
                raise MisuseError(f"there is user memory at {addr:#x} already: give `addr=`")
            kernel.keep(areas, addr, data)
        self.addr: Final = addr


async def bpf_copy_from_user(run: BpfRun, dst: int, size: int, user_ptr: int) -> int:
    size &= U32
    kernel = run.kernel
    await might_fault()
    async with sleeping("handle_mm_fault"):
        fails = await should_fail(kernel, "usercopy", "copy_from_user")
    copied = b"" if fails else kernel.subsystem(UserSpace).readable(user_ptr, size)
    await run.write(dst, copied)
    if len(copied) < size:
        await run.write(dst, bytes(size))
    await run.image.fetch(run.image.addr + run.image.layout.epilogue)
    return -EFAULT if len(copied) < size else 0


# -- the machine ---------------------------------------------------------------------------------


async def bpf_get_smp_processor_id(run: BpfRun) -> int:
    return smp_processor_id(run.kernel)


async def bpf_get_prandom_u32(run: BpfRun) -> int:
    del run
    return PRANDOM_U32[await choose(len(PRANDOM_U32), "bpf_get_prandom_u32")]


async def bpf_ktime_get_ns(run: BpfRun) -> int:
    del run
    return await now()


async def bpf_tail_call(run: BpfRun, ctx: int, map_addr: int, index: int) -> int:
    """What the helper table has: the JIT emits a sequence of its own and never a call."""
    del ctx, map_addr, index
    raise run.error(run.at, "bpf_tail_call() is no function")


def _proto(function: Any, ret: Ret, *args: Arg) -> BpfFuncProto:
    return BpfFuncProto(BpfCall(function.__name__, len(args), function), ret, args)


_MAP_KEY: Final = (Arg.CONST_MAP_PTR, Arg.MAP_KEY)

HELPERS: Final[Mapping[int, BpfFuncProto]] = MappingProxyType(
    {
        BPF_FUNC.map_lookup_elem: _proto(bpf_map_lookup_elem, Ret.MAP_VALUE_OR_NULL, *_MAP_KEY),
        BPF_FUNC.map_update_elem: _proto(
            bpf_map_update_elem, Ret.INTEGER, *_MAP_KEY, Arg.MAP_VALUE, Arg.ANYTHING
        ),
        BPF_FUNC.map_delete_elem: _proto(bpf_map_delete_elem, Ret.INTEGER, *_MAP_KEY),
        BPF_FUNC.ktime_get_ns: _proto(bpf_ktime_get_ns, Ret.INTEGER),
        BPF_FUNC.get_prandom_u32: _proto(bpf_get_prandom_u32, Ret.INTEGER),
        BPF_FUNC.get_smp_processor_id: _proto(bpf_get_smp_processor_id, Ret.INTEGER),
        BPF_FUNC.spin_lock: _proto(bpf_spin_lock, Ret.VOID, Arg.SPIN_LOCK),
        BPF_FUNC.spin_unlock: _proto(bpf_spin_unlock, Ret.VOID, Arg.SPIN_LOCK),
        BPF_FUNC.tail_call: _proto(
            bpf_tail_call, Ret.VOID, Arg.CTX, Arg.CONST_MAP_PTR, Arg.ANYTHING
        ),
        BPF_FUNC.copy_from_user: _proto(
            bpf_copy_from_user, Ret.INTEGER, Arg.UNINIT_MEM, Arg.CONST_SIZE_OR_ZERO, Arg.ANYTHING
        ),
    }
)
"""What is modelled, by number."""

KERNEL_CALLS: Final[dict[int, BpfCall]] = {
    HTAB_MAP_LOOKUP_ELEM: BpfCall("__htab_map_lookup_elem", 2, htab_lookup),
}
"""What inlined code calls."""

MAP_OPS: Final[Mapping[int, Any]] = MappingProxyType(
    {
        BPF_FUNC.map_lookup_elem: map_lookup_elem,
        BPF_FUNC.map_update_elem: map_update_elem,
        BPF_FUNC.map_delete_elem: map_delete_elem,
    }
)
"""What the verifier patches a call of a map helper to when it knows the map."""

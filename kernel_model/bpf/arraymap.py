"""kernel/bpf/arraymap.c (v5.10): arrays and per-CPU arrays

What the file has about arrays of pointers is in `kernel_model.bpf.fd_arraymap`.

Not modelled: BTF, direct access to values, mmap, batches, iterators; limits on locked memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

from kernel_model.bpf.attr import (
    BPF_EXIST,
    BPF_F_ACCESS_MASK,
    BPF_F_INNER_MAP,
    BPF_F_LOCK,
    BPF_F_MMAPABLE,
    BPF_F_NUMA_NODE,
    BPF_F_PRESERVE_ELEMS,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_MAP_TYPE_PERF_EVENT_ARRAY,
    BPF_NOEXIST,
    MapCreateAttr,
)
from kernel_model.bpf.capability import bpf_bypass_spec_v1
from kernel_model.bpf.insn import (
    BPF_ADD,
    BPF_ALU32_IMM,
    BPF_ALU64_IMM,
    BPF_ALU64_REG,
    BPF_AND,
    BPF_JA,
    BPF_JGE,
    BPF_JMP_IMM,
    BPF_LDX_MEM,
    BPF_LSH,
    BPF_MOV64_IMM,
    BPF_MUL,
    BPF_REG_0,
    BPF_REG_1,
    BPF_REG_2,
    BPF_W,
    Insn,
)
from kernel_model.bpf.map import (
    KMALLOC_MAX_SIZE,
    MAP_VALUE_RACES,
    U32_MAX,
    BpfMap,
    MapOps,
    MapShape,
    ValuePtr,
    bpf_map_charge_init,
    bpf_map_flags_access_ok,
    bpf_map_meta_equal,
    copy_map_value,
    copy_map_value_locked,
    map_value_has_spin_lock,
    round_up,
    words,
)
from kernel_model.bpf.percpu import num_possible_cpus, smp_processor_id
from kernel_model.fixes import Fix
from kernel_model.kernel import kernel_function
from kernel_model.linux.errno import E2BIG, EEXIST, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP
from kernel_model.linux.slab import kfree, kzalloc
from kernel_model.rcu.tree import rcu_read_lock, synchronize_rcu
from sim.cells import Bytes, Cells, Struct
from sim.macros import load, store

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel

VALUE: Final = 272  # offsetof(struct bpf_array, value)
SIZEOF_BPF_ARRAY: Final = 320

ARRAY_CREATE_FLAG_MASK: Final = (
    BPF_F_NUMA_NODE | BPF_F_MMAPABLE | BPF_F_ACCESS_MASK | BPF_F_PRESERVE_ELEMS | BPF_F_INNER_MAP
)


@final
class PercpuArea(Struct):
    """What alloc_percpu() gives for one element: a value for each CPU."""

    KIND = "percpu"
    value: Bytes

    def __init__(self, size: int) -> None:
        self.add_bytes("value", size, legal_races=MAP_VALUE_RACES)


class BpfArray(BpfMap):
    """struct bpf_array: elements of `elem_size` bytes behind the map.

    index_mask  keeps a speculative index inside; the next power of two, less 1
    value       of an array: the elements
    pptrs       of a per-CPU array: where they are
    ptrs        of an array of maps (programs, ...): the slots
    unused      what is allocated behind them and is no slot
    aux         of an array of programs: its `BpfArrayAux`
    """

    KIND = "bpf_array"

    elem_size: int
    index_mask: int
    value: Bytes
    pptrs: Cells[PercpuArea | None]
    ptrs: Cells[Any]
    unused: Cells[Any]
    aux: Any

    def __init__(self, like: MapShape, entries: int, *, bypass_spec_v1: bool) -> None:
        """An array with memory for so many `entries`; a template has none."""
        super().__init__(like, bypass_spec_v1=bypass_spec_v1)
        self.set_constant("elem_size", 256, 4, round_up(like.value_size, 8))
        self.set_constant("index_mask", 260, 4, index_mask(like.max_entries))
        self.size = SIZEOF_BPF_ARRAY
        if like.map_type == BPF_MAP_TYPE_ARRAY:
            self.add_bytes(
                "value", entries * self.elem_size, offset=VALUE, legal_races=MAP_VALUE_RACES
            )
            if like.spin_lock_off is not None:
                for i in range(entries):
                    at = VALUE + i * self.elem_size + like.spin_lock_off
                    self.embed(f".value[{i}].lock", at, 4, None)
        elif like.map_type == BPF_MAP_TYPE_PERCPU_ARRAY:
            self.add_cells("pptrs", entries, None, offset=VALUE)
        else:
            self.add_cells("ptrs", entries, None, offset=VALUE)
            unused = SIZEOF_BPF_ARRAY - VALUE >> 3  # array_map_alloc() counts what is in the struct
            self.add_cells("unused", unused, None, offset=VALUE + 8 * entries)


def index_mask(max_entries: int) -> int:
    return (1 << (max_entries - 1).bit_length()) - 1


def u32(key: bytes) -> int:
    return int.from_bytes(key[:4], "little")


# -- creation and end ----------------------------------------------------------------------------


def array_map_alloc_check(kernel: Kernel, attr: MapCreateAttr) -> int:
    percpu = attr.map_type == BPF_MAP_TYPE_PERCPU_ARRAY
    if (
        attr.max_entries == 0
        or attr.key_size != 4
        or attr.value_size == 0
        or attr.map_flags & ~ARRAY_CREATE_FLAG_MASK
        or (attr.map_flags & BPF_F_INNER_MAP and not kernel.has(Fix.INNER_MAP))
        or not bpf_map_flags_access_ok(attr.map_flags)
        or (percpu and attr.map_flags & BPF_F_NUMA_NODE)
    ):
        return -EINVAL
    if attr.map_type != BPF_MAP_TYPE_ARRAY and attr.map_flags & (BPF_F_MMAPABLE | BPF_F_INNER_MAP):
        return -EINVAL
    if attr.map_type != BPF_MAP_TYPE_PERF_EVENT_ARRAY and attr.map_flags & BPF_F_PRESERVE_ELEMS:
        return -EINVAL
    if attr.value_size > KMALLOC_MAX_SIZE:
        return -E2BIG
    return 0


async def array_map_alloc(kernel: Kernel, attr: MapCreateAttr) -> BpfArray | int:
    percpu = attr.map_type == BPF_MAP_TYPE_PERCPU_ARRAY
    elem_size = round_up(attr.value_size, 8)
    bypass_spec_v1 = bpf_bypass_spec_v1(kernel)
    max_entries = attr.max_entries if bypass_spec_v1 else index_mask(attr.max_entries) + 1
    if max_entries > U32_MAX:
        return -E2BIG
    if percpu:
        cost = max_entries * 8 + attr.max_entries * elem_size * num_possible_cpus(kernel)
    else:
        cost = max_entries * elem_size
    error = bpf_map_charge_init(SIZEOF_BPF_ARRAY + cost)
    if error:
        return error
    array = await kzalloc(
        kernel, BpfArray, attr, max_entries, bypass_spec_v1=bypass_spec_v1, gfp="GFP_USER"
    )
    if array is None:
        return -ENOMEM
    if percpu and await bpf_array_alloc_percpu(kernel, array):
        await kfree(kernel, array, "bpf_map_area_free")
        return -ENOMEM
    return array


async def bpf_array_alloc_percpu(kernel: Kernel, array: BpfArray) -> int:
    for i in range(array.max_entries):
        size = array.elem_size * num_possible_cpus(kernel)
        ptr = await kzalloc(kernel, PercpuArea, size, gfp="GFP_USER")
        if ptr is None:
            await bpf_array_free_percpu(kernel, array)
            return -ENOMEM
        array.initial(array.pptrs[i], ptr)
    return 0


async def bpf_array_free_percpu(kernel: Kernel, array: BpfArray) -> None:
    for i in range(array.max_entries):
        await kfree(kernel, await load(array.pptrs[i]), "free_percpu")


@kernel_function
async def array_map_free(kernel: Kernel, array: BpfArray) -> None:
    if not kernel.has(Fix.REMOVE_SYNCHRONIZE_RCU):
        await synchronize_rcu(kernel)
    if array.map_type == BPF_MAP_TYPE_PERCPU_ARRAY:
        await bpf_array_free_percpu(kernel, array)
    await kfree(kernel, array, "bpf_map_area_free")


# -- operations ----------------------------------------------------------------------------------


@kernel_function
async def array_map_lookup_elem(kernel: Kernel, array: BpfArray, key: bytes) -> ValuePtr | None:
    index = u32(key)
    if index >= await load(array.field("max_entries")):
        return None
    return ValuePtr(array.value, array.elem_size * (index & array.index_mask))


@kernel_function
async def array_map_update_elem(
    kernel: Kernel, array: BpfArray, key: bytes, value: bytes, map_flags: int
) -> int:
    index = u32(key)
    if map_flags & ~BPF_F_LOCK > BPF_EXIST:
        return -EINVAL
    if index >= await load(array.field("max_entries")):
        return -E2BIG
    if map_flags & BPF_NOEXIST:
        return -EEXIST
    if map_flags & BPF_F_LOCK and not map_value_has_spin_lock(array):
        return -EINVAL
    if array.map_type == BPF_MAP_TYPE_PERCPU_ARRAY:
        await copy_map_value(array, await _this_cpu_ptr(kernel, array, index), value)
    elif map_flags & BPF_F_LOCK:
        val = ValuePtr(array.value, array.elem_size * (index & array.index_mask))
        await copy_map_value_locked(array, val, value)
    else:
        val = ValuePtr(array.value, array.elem_size * (index & array.index_mask))
        await copy_map_value(array, val, value)
    return 0


async def array_map_delete_elem(kernel: Kernel, array: BpfArray, key: bytes) -> int:
    return -EINVAL


async def array_map_get_next_key(kernel: Kernel, array: BpfArray, key: bytes | None) -> bytes | int:
    index = U32_MAX if key is None else u32(key)
    if index >= array.max_entries:
        return bytes(4)
    if index == array.max_entries - 1:
        return -ENOENT
    return (index + 1).to_bytes(4, "little")


def array_map_gen_lookup(array: BpfArray) -> list[Insn] | int:
    """The look-up as instructions: r1 is the map, r2 points to the key, r0 becomes the result."""
    if array.map_flags & BPF_F_INNER_MAP:
        return -EOPNOTSUPP
    return [
        *gen_index(array, after_check=3),
        BPF_JMP_IMM(BPF_JA, 0, 0, 1),
        BPF_MOV64_IMM(BPF_REG_0, 0),
    ]


def gen_index(array: BpfArray, after_check: int) -> list[Insn]:
    """Instructions that leave the address of an element in r0.

    after_check  how many of the instructions after the check of the index are skipped, without a
                 mask, if it is out of range
    """
    ret, map_ptr, index = BPF_REG_0, BPF_REG_1, BPF_REG_2
    insns = [
        BPF_ALU64_IMM(BPF_ADD, map_ptr, VALUE),
        BPF_LDX_MEM(BPF_W, ret, index, 0),
    ]
    if array.bypass_spec_v1:
        insns.append(BPF_JMP_IMM(BPF_JGE, ret, array.max_entries, after_check))
    else:
        insns.append(BPF_JMP_IMM(BPF_JGE, ret, array.max_entries, after_check + 1))
        insns.append(BPF_ALU32_IMM(BPF_AND, ret, array.index_mask))
    elem_size = round_up(array.value_size, 8)
    if elem_size & (elem_size - 1) == 0:
        insns.append(BPF_ALU64_IMM(BPF_LSH, ret, elem_size.bit_length() - 1))
    else:
        insns.append(BPF_ALU64_IMM(BPF_MUL, ret, elem_size))
    insns.append(BPF_ALU64_REG(BPF_ADD, ret, map_ptr))
    return insns


def array_map_meta_equal(meta0: BpfMap, meta1: BpfMap) -> bool:
    if not bpf_map_meta_equal(meta0, meta1):
        return False
    return bool(meta0.map_flags & BPF_F_INNER_MAP) or meta0.max_entries == meta1.max_entries


# -- per-CPU arrays ------------------------------------------------------------------------------


async def _this_cpu_ptr(kernel: Kernel, array: BpfArray, index: int) -> ValuePtr:
    pptr = await load(array.pptrs[index & array.index_mask])
    assert pptr is not None
    return ValuePtr(pptr.value, array.elem_size * smp_processor_id(kernel))


@kernel_function
async def percpu_array_map_lookup_elem(
    kernel: Kernel, array: BpfArray, key: bytes
) -> ValuePtr | None:
    index = u32(key)
    if index >= await load(array.field("max_entries")):
        return None
    return await _this_cpu_ptr(kernel, array, index)


async def bpf_percpu_array_copy(kernel: Kernel, array: BpfArray, key: bytes) -> bytes | int:
    """The values of all CPUs, for user space."""
    index = u32(key)
    if index >= array.max_entries:
        return -ENOENT
    async with rcu_read_lock():
        pptr = await load(array.pptrs[index & array.index_mask])
        assert pptr is not None
        size = array.elem_size * num_possible_cpus(kernel)
        value = [await load(pptr.value.word(at, n)) for at, n in words(0, size)]
    return b"".join(word.to_bytes(8, "little") for word in value)


async def bpf_percpu_array_update(
    kernel: Kernel, array: BpfArray, key: bytes, value: bytes, map_flags: int
) -> int:
    """Overwrite the values of all CPUs, for user space."""
    index = u32(key)
    if map_flags > BPF_EXIST:
        return -EINVAL
    if index >= array.max_entries:
        return -E2BIG
    if map_flags == BPF_NOEXIST:
        return -EEXIST
    async with rcu_read_lock():
        pptr = await load(array.pptrs[index & array.index_mask])
        assert pptr is not None
        for at, n in words(0, array.elem_size * num_possible_cpus(kernel)):
            await store(pptr.value.word(at, n), int.from_bytes(value[at : at + n], "little"))
    return 0


array_map_ops: Final[MapOps[BpfArray]] = MapOps(
    map_type=BPF_MAP_TYPE_ARRAY,
    map_meta_equal=array_map_meta_equal,
    map_alloc_check=array_map_alloc_check,
    map_alloc=array_map_alloc,
    map_free=array_map_free,
    map_get_next_key=array_map_get_next_key,
    map_lookup_elem=array_map_lookup_elem,
    map_update_elem=array_map_update_elem,
    map_delete_elem=array_map_delete_elem,
    map_gen_lookup=array_map_gen_lookup,
)

percpu_array_map_ops: Final[MapOps[BpfArray]] = MapOps(
    map_type=BPF_MAP_TYPE_PERCPU_ARRAY,
    map_meta_equal=bpf_map_meta_equal,
    map_alloc_check=array_map_alloc_check,
    map_alloc=array_map_alloc,
    map_free=array_map_free,
    map_get_next_key=array_map_get_next_key,
    map_lookup_elem=percpu_array_map_lookup_elem,
    map_update_elem=array_map_update_elem,
    map_delete_elem=array_map_delete_elem,
)

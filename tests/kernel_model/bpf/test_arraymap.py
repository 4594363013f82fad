"""Arrays and per-CPU arrays: layout, operations, generated look-ups, torn values."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_model.bpf import arraymap
from kernel_model.bpf.arraymap import BpfArray, array_map_gen_lookup, array_map_update_elem
from kernel_model.bpf.attr import (
    BPF_ANY,
    BPF_EXIST,
    BPF_F_INNER_MAP,
    BPF_F_LOCK,
    BPF_F_MMAPABLE,
    BPF_F_NO_PREALLOC,
    BPF_F_NUMA_NODE,
    BPF_F_PRESERVE_ELEMS,
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY_PROG,
    BPF_MAP_CREATE,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_NOEXIST,
    MapCreateAttr,
)
from kernel_model.bpf.capability import drop_capabilities
from kernel_model.bpf.disasm import listing
from kernel_model.bpf.fd_arraymap import array_of_map_gen_lookup
from kernel_model.bpf.map import (
    ValuePtr,
    copy_map_value,
    read_map_value,
    read_map_value_locked,
    unlocked_words,
    words,
)
from kernel_model.bpf.percpu import num_possible_cpus
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import E2BIG, EEXIST, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP
from kernel_model.linux.task import syscall
from kernel_model.rcu.tree import rcu_read_lock
from kernel_model.uapi import (
    bpf,
    bpf_create_map,
    bpf_map_delete_elem,
    bpf_map_get_next_key,
    bpf_map_lookup_elem,
    bpf_map_update_elem,
    close,
    u32,
)
from sim.macros import load_at
from tests.kernel_model.bpf.maps import Main, explore, map_of, run, together

ARRAY, PERCPU = BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY


def array(max_entries: int = 3, value_size: int = 12, **fields: Any) -> MapCreateAttr:
    given: dict[str, Any] = {"map_type": ARRAY, "key_size": 4} | fields
    return MapCreateAttr(value_size=value_size, max_entries=max_entries, **given)


def made(attr: MapCreateAttr) -> BpfArray:
    """The map, after everything has ended."""

    async def main(kernel: Kernel) -> Any:
        return map_of(kernel, await bpf(kernel, BPF_MAP_CREATE, attr))

    found = run(main)
    assert isinstance(found, BpfArray)
    return found


# -- creation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attr", "result"),
    [
        (array(max_entries=0), -EINVAL),
        (array(key_size=8), -EINVAL),
        (array(value_size=0), -EINVAL),
        (array(map_flags=BPF_F_NO_PREALLOC), -EINVAL),
        (array(map_flags=BPF_F_RDONLY_PROG | BPF_F_WRONLY_PROG), -EINVAL),
        (array(map_flags=BPF_F_RDONLY_PROG), 0),
        (array(map_flags=BPF_F_NUMA_NODE), 0),
        (array(map_type=PERCPU, map_flags=BPF_F_NUMA_NODE), -EINVAL),
        (array(map_flags=BPF_F_MMAPABLE | BPF_F_INNER_MAP), 0),
        (array(map_type=PERCPU, map_flags=BPF_F_MMAPABLE), -EINVAL),
        (array(map_type=PERCPU, map_flags=BPF_F_INNER_MAP), -EINVAL),
        (array(map_flags=BPF_F_PRESERVE_ELEMS), -EINVAL),
        (array(value_size=(1 << 22) + 1), -E2BIG),
        (array(max_entries=0, value_size=(1 << 22) + 1), -EINVAL),
        (array(max_entries=1 << 30, value_size=8), -E2BIG),
        (array(map_type=PERCPU, max_entries=1 << 29), -E2BIG),
    ],
)
def test_create(attr: MapCreateAttr, result: int) -> None:
    async def main(kernel: Kernel) -> int:
        return await bpf(kernel, BPF_MAP_CREATE, attr)

    assert run(main) == result


@pytest.mark.parametrize(("version", "result"), [("5.9", -EINVAL), ("5.10", 0)])
def test_inner_maps_of_dynamic_size_came_with_v5_10(version: str, result: int) -> None:
    async def main(kernel: Kernel) -> int:
        return await bpf(kernel, BPF_MAP_CREATE, array(map_flags=BPF_F_INNER_MAP))

    assert run(main, version) == result


def test_elements_are_rounded_up_for_who_may_not_bypass_spectre_v1() -> None:
    async def main(kernel: Kernel) -> tuple[int, int, int, int]:
        drop_capabilities(kernel)
        found = map_of(kernel, await bpf(kernel, BPF_MAP_CREATE, array(max_entries=5)))
        too_big = await bpf(kernel, BPF_MAP_CREATE, array(max_entries=(1 << 31) + 1, value_size=1))
        return found.max_entries, found.index_mask, len(found.value.data), too_big

    assert run(main) == (5, 7, 8 * 16, -E2BIG)


# -- layout --------------------------------------------------------------------------------------


def test_values_begin_at_272_and_are_rounded_to_8() -> None:
    found = made(array(max_entries=3, value_size=12))

    assert found.value.addr == found.addr + 272
    assert found.elem_size == 16
    assert len(found.value.data) == 3 * 16


def test_programs_can_read_the_fields_by_address() -> None:
    async def main(kernel: Kernel) -> list[int]:
        fd = await bpf_create_map(kernel, ARRAY, 4, 12, 3, BPF_F_MMAPABLE)
        found = map_of(kernel, fd)
        assert await load_at(found.addr, 8) == found.ops.addr
        assert await load_at(found.addr + 48, 4) == found.id.value == 1
        return [await load_at(found.addr + at, 4) for at in (24, 28, 32, 36, 40, 128, 256, 260)]

    assert run(main) == [ARRAY, 4, 12, 3, BPF_F_MMAPABLE, 1, 16, 3]


def test_memcpy_moves_aligned_words() -> None:
    assert words(0, 15) == ((0, 8), (8, 4), (12, 2), (14, 1))
    assert words(4, 16) == ((4, 4), (8, 8))
    assert unlocked_words(16, 4) == ((0, 4), (8, 8))
    assert unlocked_words(16, 0) == ((4, 4), (8, 8))


# -- operations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("map_type", [ARRAY, PERCPU])
@pytest.mark.parametrize(
    ("key", "flags", "result"),
    [
        (2, BPF_ANY, 0),
        (2, BPF_EXIST, 0),
        (9, BPF_EXIST + 1, -EINVAL),
        (9, BPF_NOEXIST, -E2BIG),
        (2, BPF_NOEXIST, -EEXIST),
        (9, BPF_F_LOCK, -EINVAL),
    ],
)
def test_update(map_type: int, key: int, flags: int, result: int) -> None:
    async def main(kernel: Kernel) -> int:
        fd = await bpf_create_map(kernel, map_type, 4, 8, 3)
        value = bytes(8 * num_possible_cpus(kernel))
        return await bpf_map_update_elem(kernel, fd, u32(key), value, flags)

    assert run(main) == result


@pytest.mark.parametrize("map_type", [ARRAY, PERCPU])
def test_what_was_written_is_read(map_type: int) -> None:
    async def main(kernel: Kernel) -> None:
        fd = await bpf_create_map(kernel, map_type, 4, 8, 3)
        size = 8 if map_type == ARRAY else 8 * num_possible_cpus(kernel)
        value = bytes(range(size))
        assert await bpf_map_lookup_elem(kernel, fd, u32(1)) == bytes(size)
        assert await bpf_map_update_elem(kernel, fd, u32(1), value) == 0
        assert await bpf_map_lookup_elem(kernel, fd, u32(1)) == value
        assert await bpf_map_lookup_elem(kernel, fd, u32(0)) == bytes(size)
        assert await bpf_map_lookup_elem(kernel, fd, u32(3)) == -ENOENT
        assert await bpf_map_delete_elem(kernel, fd, u32(1)) == -EINVAL

    run(main)


def test_keys_follow_one_another() -> None:
    async def main(kernel: Kernel) -> list[bytes | int]:
        fd = await bpf_create_map(kernel, ARRAY, 4, 8, 3)
        keys = (None, u32(0), u32(1), u32(2), u32(7))
        return [await bpf_map_get_next_key(kernel, fd, key) for key in keys]

    assert run(main) == [u32(0), u32(1), u32(2), -ENOENT, u32(0)]


def test_programs_see_the_element_of_their_cpu() -> None:
    async def main(kernel: Kernel) -> bytes | int:
        fd = await bpf_create_map(kernel, PERCPU, 4, 8, 2)
        found = map_of(kernel, fd)

        def program(cpu: int) -> Any:
            async def run_program() -> None:
                async with syscall(kernel), rcu_read_lock():
                    value = await found.ops.map_lookup_elem(kernel, found, u32(1))
                    await copy_map_value(found, value, bytes([cpu + 1] * 8))
                    assert await found.ops.map_lookup_elem(kernel, found, u32(2)) is None

            return run_program

        await together(kernel, program(0), program(1))
        async with syscall(kernel):
            await found.ops.map_update_elem(kernel, found, u32(1), bytes([9] * 8), BPF_ANY)
        return await bpf_map_lookup_elem(kernel, fd, u32(1))

    assert run(main, cpus=3) == bytes([1] * 8 + [2] * 8 + [0] * 8 + [9] * 8)


# -- generated look-ups --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value_size", "privileged", "text"),
    [
        (12, True, ["(07) r1 += 272", "(61) r0 = *(u32 *)(r2 +0)", "(35) if r0 >= 0x5 goto pc+3",
                    "(67) r0 <<= 4", "(0f) r0 += r1", "(05) goto pc+1", "(b7) r0 = 0"]),
        (20, False, ["(07) r1 += 272", "(61) r0 = *(u32 *)(r2 +0)", "(35) if r0 >= 0x5 goto pc+4",
                     "(54) w0 &= 7", "(27) r0 *= 24", "(0f) r0 += r1", "(05) goto pc+1",
                     "(b7) r0 = 0"]),
    ],
)  # fmt: skip
def test_look_up_is_generated(value_size: int, privileged: bool, text: list[str]) -> None:
    async def main(kernel: Kernel) -> Any:
        if not privileged:
            drop_capabilities(kernel)
        attr = array(max_entries=5, value_size=value_size)
        return map_of(kernel, await bpf(kernel, BPF_MAP_CREATE, attr))

    insns = array_map_gen_lookup(run(main))
    assert not isinstance(insns, int)
    assert [line.partition(": ")[2] for line in listing(insns).splitlines()] == text


def test_look_up_with_a_bound_that_may_differ_is_not_generated() -> None:
    assert array_map_gen_lookup(made(array(map_flags=BPF_F_INNER_MAP))) == -EOPNOTSUPP


def test_look_up_of_an_inner_map_is_generated() -> None:
    insns = array_of_map_gen_lookup(made(array(max_entries=2, value_size=4)))

    assert [line.partition(": ")[2] for line in listing(insns).splitlines()] == [
        "(07) r1 += 272",
        "(61) r0 = *(u32 *)(r2 +0)",
        "(35) if r0 >= 0x2 goto pc+5",
        "(67) r0 <<= 3",
        "(0f) r0 += r1",
        "(79) r0 = *(u64 *)(r0 +0)",
        "(15) if r0 == 0x0 goto pc+1",
        "(05) goto pc+1",
        "(b7) r0 = 0",
    ]


# -- torn values ---------------------------------------------------------------------------------

OLD, NEW = bytes([0] * 8 + [1] * 16), bytes([0] * 8 + [2] * 16)


def writer_against_reader(flags: int) -> Main:
    """One system call writes a value that has a lock, another one reads it: what it reads."""

    async def main(kernel: Kernel) -> bytes:
        attr = array(max_entries=1, value_size=24, spin_lock_off=4)
        fd = await bpf(kernel, BPF_MAP_CREATE, attr)
        await bpf_map_update_elem(kernel, fd, u32(0), OLD)
        found = map_of(kernel, fd)
        value = ValuePtr(found.value, 0)
        read: Any = read_map_value_locked if flags & BPF_F_LOCK else read_map_value
        seen: list[bytes] = []

        async def write() -> None:
            async with syscall(kernel), rcu_read_lock():
                await array_map_update_elem(kernel, found, u32(0), NEW, flags)

        async def look_up() -> None:
            async with syscall(kernel), rcu_read_lock():
                seen.append(await read(found, value))

        await together(kernel, write, look_up)
        return seen[0]

    return main


def test_values_may_be_torn() -> None:
    torn = {OLD[:16] + NEW[16:], NEW[:16] + OLD[16:]}

    assert explore(writer_against_reader(BPF_ANY)).outcomes == {OLD, NEW} | torn


def test_values_under_their_lock_are_not_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explore(writer_against_reader(BPF_F_LOCK)).outcomes == {OLD, NEW}

    monkeypatch.setattr(arraymap, "copy_map_value_locked", copy_map_value)
    assert len(explore(writer_against_reader(BPF_F_LOCK)).outcomes) > 2


@pytest.mark.parametrize("spin_lock_off", [0, 4, 20])
def test_the_lock_is_neither_read_nor_written(spin_lock_off: int) -> None:
    async def main(kernel: Kernel) -> bytes | int:
        attr = array(max_entries=1, value_size=24, spin_lock_off=spin_lock_off)
        fd = await bpf(kernel, BPF_MAP_CREATE, attr)
        for flags in (BPF_ANY, BPF_F_LOCK):
            assert await bpf_map_update_elem(kernel, fd, u32(0), bytes([7] * 24), flags) == 0
        found = await bpf_map_lookup_elem(kernel, fd, u32(0), BPF_F_LOCK)
        assert await bpf_map_lookup_elem(kernel, fd, u32(0)) == found
        return found

    lock = slice(spin_lock_off, spin_lock_off + 4)
    value = bytearray([7] * 24)
    value[lock] = bytes(4)
    assert run(main) == value


# -- no memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("map_type", [ARRAY, PERCPU])
def test_nothing_is_lost_when_memory_is_short(map_type: int) -> None:
    async def main(kernel: Kernel) -> int:
        fd = await bpf_create_map(kernel, map_type, 4, 8, 2)
        if fd >= 0:
            await close(kernel, fd)
        return fd

    found = explore(main, faults=frozenset({"slab"}))

    assert found.outcomes == {0, -ENOMEM}
    assert not found.wrong

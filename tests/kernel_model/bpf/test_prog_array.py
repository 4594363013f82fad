"""Arrays of programs: what user space may do with them, whom they belong to, when they empty."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import (
    BPF_ANY,
    BPF_EXIST,
    BPF_F_LOCK,
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY_PROG,
    BPF_MAP_CREATE,
    BPF_MAP_GET_FD_BY_ID,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH_OF_MAPS,
    BPF_MAP_TYPE_PROG_ARRAY,
    BPF_NOEXIST,
    GetIdAttr,
    MapCreateAttr,
)
from kernel_model.bpf.capability import drop_capabilities
from kernel_model.bpf.prog import BpfProg, bpf_load_program
from kernel_model.bpf.prog_attr import (
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_SCHED_CLS,
)
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import (
    E2BIG,
    EBADF,
    EINVAL,
    ENOENT,
    ENOTSUPP,
    EOPNOTSUPP,
    EPERM,
)
from kernel_model.linux.task import syscall
from kernel_model.rcu.tree import synchronize_rcu
from kernel_model.uapi import (
    bpf,
    bpf_create_map,
    bpf_create_map_in_map,
    bpf_map_delete_elem,
    bpf_map_freeze,
    bpf_map_get_fd_by_id,
    bpf_map_get_next_key,
    bpf_map_lookup_elem,
    bpf_map_update_elem,
    close,
    u32,
)
from tests.kernel_model.bpf.maps import explore, file_of, map_of, other_file, run
from tests.kernel_model.bpf.running import load

PROGS = BPF_MAP_TYPE_PROG_ARRAY
PLAIN = "r0 = 0\nexit"
TAIL = "r2 = map[progs]\nr3 = 0\ncall bpf_tail_call\nr0 = 0\nexit"


async def prog_array(kernel: Kernel, entries: int = 2) -> int:
    return await bpf_create_map(kernel, PROGS, 4, 4, entries)


def prog_of(kernel: Kernel, fd: int) -> BpfProg:
    """The program of a descriptor, without a step."""
    prog = file_of(kernel, fd).private_data
    assert isinstance(prog, BpfProg)
    return prog


def in_slot(kernel: Kernel, map_fd: int, index: int) -> Any:
    """What a slot holds, without a step."""
    return map_of(kernel, map_fd).ptrs[index].value


# -- create --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({}, 0),
        ({"value_size": 8}, -EINVAL),
        ({"value_size": 2}, -EINVAL),
        ({"value_size": 0}, -EINVAL),
        ({"key_size": 8}, -EINVAL),
        ({"max_entries": 0}, -EINVAL),
        ({"map_flags": BPF_F_RDONLY_PROG}, -EINVAL),
        ({"map_flags": BPF_F_WRONLY_PROG}, -EINVAL),
    ],
)
def test_create(fields: dict[str, Any], result: int) -> None:
    plain = MapCreateAttr(map_type=PROGS, key_size=4, value_size=4, max_entries=2)
    attr = dataclasses.replace(plain, **fields)

    async def main(kernel: Kernel) -> int:
        return min(0, await bpf(kernel, BPF_MAP_CREATE, attr))

    assert run(main) == result


# -- update, delete, lookup ----------------------------------------------------------------------


def test_errors_of_an_update() -> None:
    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        prog = await load(kernel, PLAIN)
        plain_map = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1)
        other = await other_file(kernel)
        update = bpf_map_update_elem
        for flags in (BPF_EXIST, BPF_NOEXIST, BPF_F_LOCK):
            assert await update(kernel, fd, u32(0), u32(prog), flags) == -EINVAL
        assert await update(kernel, fd, u32(2), u32(prog), BPF_EXIST) == -EINVAL  # flags first
        assert await update(kernel, fd, u32(2), u32(prog)) == -E2BIG
        assert await update(kernel, fd, u32(2), u32(31)) == -E2BIG  # then the index
        assert await update(kernel, fd, u32(1), u32(31)) == -EBADF
        for no_program in (fd, plain_map, other):
            assert await update(kernel, fd, u32(1), u32(no_program)) == -EINVAL
        assert in_slot(kernel, fd, 0) is in_slot(kernel, fd, 1) is None
        assert map_of(kernel, fd).aux.type.value == 0  # nobody owns it for having tried
        assert await update(kernel, fd, u32(1), u32(prog), BPF_ANY) == 0
        assert in_slot(kernel, fd, 1) is prog_of(kernel, prog)
        assert prog_of(kernel, prog).aux.refcnt.value == 2

    run(main)


def test_an_update_drops_the_reference_to_what_was_there() -> None:
    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        first, second = await load(kernel, PLAIN), await load(kernel, PLAIN)
        for prog in (first, first, second):
            assert await bpf_map_update_elem(kernel, fd, u32(0), u32(prog)) == 0
        assert prog_of(kernel, first).aux.refcnt.value == 1
        assert prog_of(kernel, second).aux.refcnt.value == 2

    run(main)


def test_delete() -> None:
    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        prog = await load(kernel, PLAIN)
        assert await bpf_map_delete_elem(kernel, fd, u32(0)) == -ENOENT
        assert await bpf_map_delete_elem(kernel, fd, u32(2)) == -E2BIG
        assert await bpf_map_update_elem(kernel, fd, u32(0), u32(prog)) == 0
        assert await bpf_map_delete_elem(kernel, fd, u32(1)) == -ENOENT
        assert await bpf_map_delete_elem(kernel, fd, u32(0)) == 0
        assert await bpf_map_delete_elem(kernel, fd, u32(0)) == -ENOENT
        assert prog_of(kernel, prog).aux.refcnt.value == 1

    run(main)


def test_user_space_reads_ids() -> None:
    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        progs = [await load(kernel, PLAIN) for _ in range(2)]
        assert await bpf_map_lookup_elem(kernel, fd, u32(0)) == -ENOENT
        assert await bpf_map_lookup_elem(kernel, fd, u32(2)) == -ENOENT
        for prog in progs:
            assert await bpf_map_update_elem(kernel, fd, u32(0), u32(prog)) == 0
            id = prog_of(kernel, prog).aux.id.value
            assert await bpf_map_lookup_elem(kernel, fd, u32(0)) == u32(id)
        assert await bpf_map_lookup_elem(kernel, fd, u32(1)) == -ENOENT
        assert await bpf_map_get_next_key(kernel, fd, None) == u32(0)
        assert await bpf_map_get_next_key(kernel, fd, u32(1)) == -ENOENT

    run(main)


def test_a_frozen_array_is_not_written_to() -> None:
    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        prog = await load(kernel, PLAIN)
        assert await bpf_map_update_elem(kernel, fd, u32(0), u32(prog)) == 0
        assert await bpf_map_freeze(kernel, fd) == 0
        assert await bpf_map_update_elem(kernel, fd, u32(0), u32(prog)) == -EPERM
        assert await bpf_map_delete_elem(kernel, fd, u32(0)) == -EPERM
        assert isinstance(await bpf_map_lookup_elem(kernel, fd, u32(0)), bytes)

    run(main)


# -- whose it is ---------------------------------------------------------------------------------


def test_the_first_program_owns_the_array_for_ever() -> None:
    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        tracing = await load(kernel, PLAIN, BPF_PROG_TYPE_RAW_TRACEPOINT)
        network = await load(kernel, PLAIN, BPF_PROG_TYPE_SCHED_CLS)
        assert await bpf_map_update_elem(kernel, fd, u32(0), u32(tracing)) == 0
        assert await bpf_map_update_elem(kernel, fd, u32(1), u32(network)) == -EINVAL
        assert prog_of(kernel, network).aux.refcnt.value == 1
        assert await bpf_map_delete_elem(kernel, fd, u32(0)) == 0
        assert await bpf_map_update_elem(kernel, fd, u32(1), u32(network)) == -EINVAL
        assert await bpf_map_update_elem(kernel, fd, u32(1), u32(tracing)) == 0

    run(main)


@pytest.mark.parametrize("code", [TAIL, f"r6 = map[progs]\n{PLAIN}"])
def test_loading_a_program_with_the_array_takes_it(code: str) -> None:
    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        network = await load(kernel, PLAIN, BPF_PROG_TYPE_SCHED_CLS)
        tracing = await load(kernel, code, maps={"progs": fd})
        assert await bpf_map_update_elem(kernel, fd, u32(0), u32(network)) == -EINVAL
        assert await bpf_map_update_elem(kernel, fd, u32(0), u32(tracing)) == 0

    run(main)


@pytest.mark.parametrize("shape", ["main", "subprog"])
def test_a_program_of_another_type_is_not_loaded_and_leaves_nothing(shape: str) -> None:
    code = TAIL if shape == "main" else f"call next\nexit\nnext: {TAIL}"

    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        network = await load(kernel, PLAIN, BPF_PROG_TYPE_SCHED_CLS)
        assert await bpf_map_update_elem(kernel, fd, u32(0), u32(network)) == 0
        insns = assemble(code, {"progs": fd})
        tracing = await bpf_load_program(kernel, BPF_PROG_TYPE_RAW_TRACEPOINT, insns)
        assert tracing == -EINVAL
        async with syscall(kernel):
            await synchronize_rcu(kernel)
        assert await bpf_map_update_elem(kernel, fd, u32(0), u32(network)) == 0

    assert not explore(main, "5.14", runs=1).wrong


# -- the last user -------------------------------------------------------------------------------


def test_a_program_and_the_array_that_holds_it_are_freed() -> None:
    kernels = []

    async def main(kernel: Kernel) -> None:
        kernels.append(kernel)
        fd = await prog_array(kernel)
        prog = await load(kernel, TAIL, maps={"progs": fd})
        assert await bpf_map_update_elem(kernel, fd, u32(0), u32(prog)) == 0
        await close(kernel, prog)
        await close(kernel, fd)

    found = explore(main, runs=1)

    assert not found.wrong
    kinds = {made.KIND for made in kernels[0].memory.live()}
    assert not kinds & {"bpf_prog", "bpf_prog_aux", "bpf_array", "bpf_array_aux", "bpf_image"}


def test_the_array_is_cleared_when_user_space_has_no_reference_although_a_program_has() -> None:
    kernels: list[tuple[Any, Any]] = []

    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        target = await load(kernel, PLAIN)
        await load(kernel, TAIL, maps={"progs": fd})
        second = await bpf_map_get_fd_by_id(kernel, 1)
        map = map_of(kernel, fd)
        assert (map.usercnt.value, map.refcnt.value) == (2, 3)
        for index in (0, 1):
            assert await bpf_map_update_elem(kernel, fd, u32(index), u32(target)) == 0
        await close(kernel, fd)
        assert isinstance(await bpf_map_lookup_elem(kernel, second, u32(1)), bytes)
        await close(kernel, second)
        kernels.append((map, prog_of(kernel, target)))

    assert not explore(main, runs=1).wrong
    map, target = kernels[0]
    assert [slot.value for slot in map.ptrs] == [None, None]
    assert map.usercnt.value == 0
    assert map.refcnt.value == 1
    assert target.aux.refcnt.value == 1


@pytest.mark.parametrize(("remove", "cleared"), [(("c9da161c6517",), True), ((), False)])
def test_without_a_count_of_user_references_every_descriptor_clears(
    remove: tuple[str, ...], *, cleared: bool
) -> None:
    maps = []

    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        target = await load(kernel, PLAIN)
        assert await bpf_map_get_fd_by_id(kernel, 1) >= 0
        assert await bpf_map_update_elem(kernel, fd, u32(0), u32(target)) == 0
        maps.append(map_of(kernel, fd))
        await close(kernel, fd)

    assert not explore(main, remove=remove, runs=1).wrong
    assert (maps[0].ptrs[0].value is None) == cleared


def test_clearing_an_array_again_while_that_is_pending_loses_a_reference() -> None:
    """The work is queued once, but each time takes a reference, on v5.10 as it was."""

    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        prog = await load(kernel, TAIL, maps={"progs": fd})
        await close(kernel, fd)
        await close(kernel, await bpf_map_get_fd_by_id(kernel, 1))
        await close(kernel, prog)

    assert "memory-leak" in explore(main, runs=1).kinds


def test_errors_of_getting_a_descriptor_by_id() -> None:
    async def main(kernel: Kernel) -> None:
        fd = await prog_array(kernel)
        by_id = BPF_MAP_GET_FD_BY_ID
        assert await bpf_map_get_fd_by_id(kernel, 0) == -ENOENT
        assert await bpf_map_get_fd_by_id(kernel, 2) == -ENOENT
        assert await bpf(kernel, by_id, GetIdAttr(id=1, open_flags=1)) == -EINVAL
        assert await bpf(kernel, by_id, GetIdAttr(id=1, unused_tail=True)) == -EINVAL
        other = await bpf_map_get_fd_by_id(kernel, 1)
        assert map_of(kernel, other) is map_of(kernel, fd)
        assert map_of(kernel, fd).usercnt.value == 2
        drop_capabilities(kernel)
        assert await bpf_map_get_fd_by_id(kernel, 1) == -EPERM
        assert await bpf_map_get_fd_by_id(kernel, 9) == -EPERM

    run(main)


def test_the_id_of_a_map_that_is_gone_is_unknown() -> None:
    async def main(kernel: Kernel) -> None:
        fd = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1)
        await close(kernel, fd)
        assert await bpf_map_get_fd_by_id(kernel, 1) == -ENOENT

    run(main)


# -- what it is not for --------------------------------------------------------------------------

KEY = "*(u64 *)(r10 -8) = 0\nr2 = r10\nr2 += -8\nr3 = r2\nr4 = 0\n"


@pytest.mark.parametrize("helper", ["lookup", "update", "delete"])
def test_programs_do_not_look_into_it(helper: str) -> None:
    code = f"{KEY}r1 = map[progs]\ncall bpf_map_{helper}_elem\n{PLAIN}"

    async def main(kernel: Kernel) -> int:
        insns = assemble(code, {"progs": await prog_array(kernel)})
        return await bpf_load_program(kernel, BPF_PROG_TYPE_RAW_TRACEPOINT, insns)

    assert run(main) == -EINVAL


def test_the_look_up_of_programs_says_that_there_is_none() -> None:
    async def main(kernel: Kernel) -> int:
        map = map_of(kernel, await prog_array(kernel))
        result: int = await map.ops.map_lookup_elem(kernel, map, u32(0))
        return result

    assert run(main) == -EOPNOTSUPP


@pytest.mark.parametrize("outer", [BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_HASH_OF_MAPS])
def test_it_is_no_inner_map(outer: int) -> None:
    async def main(kernel: Kernel) -> tuple[int, int]:
        fd = await prog_array(kernel)
        created = await bpf_create_map_in_map(kernel, outer, 4, fd, 1)
        array = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 2)
        maps = await bpf_create_map_in_map(kernel, outer, 4, array, 1)
        return created, await bpf_map_update_elem(kernel, maps, u32(0), u32(fd))

    assert run(main) == (-ENOTSUPP, -EINVAL)

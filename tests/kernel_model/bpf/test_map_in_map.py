"""Maps of maps: what may be an inner map, and what user space sees of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kernel_model.bpf.arraymap import BpfArray
from kernel_model.bpf.attr import (
    BPF_EXIST,
    BPF_F_INNER_MAP,
    BPF_F_NO_PREALLOC,
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY_PROG,
    BPF_MAP_CREATE,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH,
    BPF_MAP_TYPE_HASH_OF_MAPS,
    BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_NOEXIST,
    MapCreateAttr,
)
from kernel_model.bpf.capability import drop_capabilities
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import (
    E2BIG,
    EBADF,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOMEM,
    ENOTSUPP,
)
from kernel_model.linux.task import syscall
from kernel_model.rcu.tree import rcu_read_lock
from kernel_model.uapi import (
    bpf,
    bpf_create_map,
    bpf_create_map_in_map,
    bpf_map_delete_elem,
    bpf_map_get_next_key,
    bpf_map_lookup_elem,
    bpf_map_update_elem,
    close,
    u32,
)
from sim.macros import load_at
from sim.strategies.dfs import Dfs
from tests.kernel_model.bpf.maps import explore, map_of, other_file, run

ARRAY, HASH = BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH
ARRAY_OF_MAPS, HASH_OF_MAPS = BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_HASH_OF_MAPS
OUTER = pytest.mark.parametrize("outer_type", [ARRAY_OF_MAPS, HASH_OF_MAPS], ids=["array", "hash"])


def inner_map(**fields: Any) -> MapCreateAttr:
    given = {"map_type": ARRAY, "key_size": 4, "value_size": 8, "max_entries": 2}
    return MapCreateAttr(**(given | fields))


def outer_map(outer_type: int, fd: int, **fields: Any) -> MapCreateAttr:
    given = {"map_type": outer_type, "key_size": 4, "value_size": 4, "max_entries": 2}
    return MapCreateAttr(inner_map_fd=fd, **(given | fields))


# -- the template --------------------------------------------------------------------------------


@OUTER
@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"value_size": 8}, -EINVAL),  # before the inner map is looked up
        ({"max_entries": 0}, -EINVAL),
        ({}, -EBADF),
    ],
)
def test_checks_before_the_inner_map(outer_type: int, fields: dict[str, int], result: int) -> None:
    async def main(kernel: Kernel) -> int:
        return await bpf(kernel, BPF_MAP_CREATE, outer_map(outer_type, 31, **fields))

    assert run(main) == result


def test_only_hashes_may_be_read_only_for_programs() -> None:
    async def main(kernel: Kernel) -> list[int]:
        fd = await bpf(kernel, BPF_MAP_CREATE, inner_map())
        return [
            await bpf(kernel, BPF_MAP_CREATE, outer_map(outer_type, fd, map_flags=flag))
            for outer_type in (ARRAY_OF_MAPS, HASH_OF_MAPS)
            for flag in (BPF_F_RDONLY_PROG, BPF_F_WRONLY_PROG)
        ]

    assert run(main) == [-EINVAL, -EINVAL, 1, 2]


@OUTER
@pytest.mark.parametrize(
    ("inner", "result"),
    [
        (inner_map(), 0),
        (inner_map(map_type=HASH, map_flags=BPF_F_NO_PREALLOC), 0),
        (inner_map(map_type=BPF_MAP_TYPE_PERCPU_ARRAY), 0),
        (inner_map(spin_lock_off=4), -ENOTSUPP),
    ],
)
def test_what_may_be_an_inner_map(outer_type: int, inner: MapCreateAttr, result: int) -> None:
    async def main(kernel: Kernel) -> int:
        fd = await bpf(kernel, BPF_MAP_CREATE, inner)
        return min(0, await bpf(kernel, BPF_MAP_CREATE, outer_map(outer_type, fd)))

    assert run(main) == result


@OUTER
def test_maps_of_maps_are_not_inner_maps(outer_type: int) -> None:
    """They have no map_meta_equal either, but are refused for their depth."""

    async def main(kernel: Kernel) -> int:
        fd = await bpf(kernel, BPF_MAP_CREATE, inner_map())
        outer = await bpf(kernel, BPF_MAP_CREATE, outer_map(outer_type, fd))
        return await bpf(kernel, BPF_MAP_CREATE, outer_map(outer_type, outer))

    assert run(main) == -EINVAL


def test_type_that_cannot_be_compared_is_not_supported() -> None:
    async def main(kernel: Kernel) -> int:
        fd = await bpf(kernel, BPF_MAP_CREATE, inner_map(spin_lock_off=0))
        found = map_of(kernel, fd)
        found.set_ops(dataclasses.replace(found.ops, map_meta_equal=None))
        return await bpf(kernel, BPF_MAP_CREATE, outer_map(ARRAY_OF_MAPS, fd))

    assert run(main) == -ENOTSUPP


@OUTER
def test_file_that_is_no_map_is_no_inner_map(outer_type: int) -> None:
    async def main(kernel: Kernel) -> tuple[int, int]:
        fd = await bpf(kernel, BPF_MAP_CREATE, inner_map())
        other = await other_file(kernel)
        created = await bpf(kernel, BPF_MAP_CREATE, outer_map(outer_type, other))
        outer = await bpf(kernel, BPF_MAP_CREATE, outer_map(outer_type, fd))
        return created, await bpf_map_update_elem(kernel, outer, u32(0), u32(other))

    assert run(main) == (-EINVAL, -EINVAL)


def test_template_of_an_array_knows_what_look_ups_are_made_of() -> None:
    async def main(kernel: Kernel) -> None:
        drop_capabilities(kernel)
        fd = await bpf(kernel, BPF_MAP_CREATE, inner_map(max_entries=5))
        outer = await bpf(kernel, BPF_MAP_CREATE, outer_map(ARRAY_OF_MAPS, fd))
        found, meta = map_of(kernel, fd), map_of(kernel, outer).inner_map_meta
        assert isinstance(meta, BpfArray)
        assert meta.ops.map_gen_lookup is not None
        assert meta.ops.map_gen_lookup(meta) == found.ops.map_gen_lookup(found)
        assert not meta.bypass_spec_v1
        await close(kernel, fd)  # the template keeps no reference

    run(main)


@OUTER
def test_nothing_is_lost_when_memory_is_short(outer_type: int) -> None:
    async def main(kernel: Kernel) -> int:
        fd = await bpf(kernel, BPF_MAP_CREATE, inner_map())
        if fd < 0:
            return fd
        outer = await bpf(kernel, BPF_MAP_CREATE, outer_map(outer_type, fd))
        await close(kernel, fd)
        if outer >= 0:
            await close(kernel, outer)
        return min(0, outer)

    found = explore(main, strategy=Dfs(0), faults=frozenset({"slab"}))

    assert found.outcomes == {0, -ENOMEM}
    assert not found.wrong


# -- equality ------------------------------------------------------------------------------------

DYNAMIC = BPF_F_INNER_MAP


@OUTER
@pytest.mark.parametrize(
    ("template", "candidate", "equal"),
    [
        (inner_map(), inner_map(), True),
        (inner_map(), inner_map(max_entries=3), False),
        (inner_map(), inner_map(value_size=16), False),
        (inner_map(), inner_map(map_type=HASH), False),
        (inner_map(), inner_map(map_type=BPF_MAP_TYPE_PERCPU_ARRAY), False),
        (inner_map(), inner_map(map_flags=DYNAMIC), False),
        (inner_map(map_flags=DYNAMIC), inner_map(), False),
        (inner_map(map_flags=DYNAMIC), inner_map(map_flags=DYNAMIC, max_entries=9), True),
        (inner_map(map_type=HASH), inner_map(map_type=HASH, max_entries=9), True),
        (inner_map(map_type=HASH), inner_map(map_type=HASH, key_size=8), False),
        (inner_map(map_type=HASH), inner_map(map_type=HASH, map_flags=BPF_F_NO_PREALLOC), False),
        (inner_map(), inner_map(spin_lock_off=4), True),  # only templates are looked at
    ],
)
def test_inner_maps_equal_the_template(
    outer_type: int, template: MapCreateAttr, candidate: MapCreateAttr, equal: bool
) -> None:
    async def main(kernel: Kernel) -> int:
        fd = await bpf(kernel, BPF_MAP_CREATE, template)
        outer = await bpf(kernel, BPF_MAP_CREATE, outer_map(outer_type, fd))
        other = await bpf(kernel, BPF_MAP_CREATE, candidate)
        error = await bpf_map_update_elem(kernel, outer, u32(0), u32(other))
        assert map_of(kernel, other).refcnt.value == 1 + equal
        return error

    assert run(main) == (0 if equal else -EINVAL)


# -- what user space sees ------------------------------------------------------------------------


@OUTER
def test_descriptors_go_in_and_ids_come_out(outer_type: int) -> None:
    async def main(kernel: Kernel) -> None:
        fd = await bpf(kernel, BPF_MAP_CREATE, inner_map())
        outer = await bpf_create_map_in_map(kernel, outer_type, 4, fd, 2)
        inner = map_of(kernel, fd)
        assert await bpf_map_lookup_elem(kernel, outer, u32(1)) == -ENOENT
        assert await bpf_map_update_elem(kernel, outer, u32(1), u32(fd)) == 0
        assert inner.refcnt.value == 2
        assert inner.usercnt.value == 1
        assert await bpf_map_lookup_elem(kernel, outer, u32(1)) == u32(inner.id.value)
        assert await bpf_map_update_elem(kernel, outer, u32(1), u32(31)) == -EBADF
        assert await bpf_map_update_elem(kernel, outer, u32(1), u32(outer)) == -EINVAL
        assert await bpf_map_update_elem(kernel, outer, u32(1), u32(fd)) == 0
        assert inner.refcnt.value == 2
        assert await bpf_map_delete_elem(kernel, outer, u32(1)) == 0
        assert await bpf_map_delete_elem(kernel, outer, u32(1)) == -ENOENT
        assert inner.refcnt.value == 1

    run(main)


def test_flags_of_an_update() -> None:
    async def main(kernel: Kernel) -> None:
        fd = await bpf(kernel, BPF_MAP_CREATE, inner_map())
        array = await bpf_create_map_in_map(kernel, ARRAY_OF_MAPS, 4, fd, 1)
        hash = await bpf_create_map_in_map(kernel, HASH_OF_MAPS, 4, fd, 1)
        update = bpf_map_update_elem
        assert await update(kernel, array, u32(9), u32(fd), BPF_EXIST) == -EINVAL
        assert await update(kernel, array, u32(9), u32(31)) == -E2BIG
        assert await bpf_map_delete_elem(kernel, array, u32(9)) == -E2BIG
        assert await update(kernel, hash, u32(0), u32(31), BPF_EXIST) == -EBADF
        assert await update(kernel, hash, u32(0), u32(fd), BPF_EXIST) == -ENOENT
        assert await update(kernel, hash, u32(0), u32(fd), BPF_NOEXIST) == 0
        assert await update(kernel, hash, u32(0), u32(fd), BPF_NOEXIST) == -EEXIST
        assert await update(kernel, hash, u32(1), u32(fd)) == -E2BIG
        assert map_of(kernel, fd).refcnt.value == 2
        assert await bpf_map_get_next_key(kernel, hash, None) == u32(0)

    run(main)


@OUTER
def test_programs_find_the_inner_map(outer_type: int) -> None:
    async def main(kernel: Kernel) -> None:
        fd = await bpf_create_map(kernel, ARRAY, 4, 8, 2)
        outer_fd = await bpf_create_map_in_map(kernel, outer_type, 4, fd, 2)
        outer = map_of(kernel, outer_fd)
        await bpf_map_update_elem(kernel, outer_fd, u32(1), u32(fd))
        async with syscall(kernel), rcu_read_lock():
            found = [await outer.ops.map_lookup_elem(kernel, outer, u32(k)) for k in (0, 1, 9)]
        assert found == [None, map_of(kernel, fd), None]
        if outer_type == ARRAY_OF_MAPS:
            assert await load_at(outer.addr + 272 + 8, 8) == map_of(kernel, fd).addr

    run(main)

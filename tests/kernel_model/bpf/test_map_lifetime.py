"""How long maps live: references, and programs that use inner maps without one.

A reader does what a program does: it looks the outer map up, and then reads the inner map. Where a
search is bounded, the same bound finds the use after free when the rule is broken.
"""

from __future__ import annotations

from typing import Any

import pytest

from kernel_model.bpf import fd_arraymap, hashtab, map, map_in_map, map_refs
from kernel_model.bpf.attr import (
    BPF_F_NO_PREALLOC,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH,
    BPF_MAP_TYPE_HASH_OF_MAPS,
    BPF_MAP_TYPE_PERCPU_ARRAY,
)
from kernel_model.bpf.fd_arraymap import (
    bpf_fd_array_map_lookup_elem,
    bpf_fd_array_map_update_elem,
)
from kernel_model.bpf.fd_hashtab import bpf_fd_htab_map_update_elem
from kernel_model.bpf.map import ValuePtr, bpf_disable_instrumentation, read_map_value
from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall
from kernel_model.rcu.tasks_trace import rcu_read_lock_trace
from kernel_model.rcu.tree import rcu_read_lock
from kernel_model.uapi import (
    bpf_create_map,
    bpf_create_map_in_map,
    bpf_map_delete_elem,
    bpf_map_lookup_elem,
    bpf_map_update_elem,
    close,
    u32,
)
from sim.macros import READ_ONCE
from sim.strategies.dfs import Dfs
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from tests.kernel_model.bpf.maps import (
    Main,
    Script,
    explore,
    file_of,
    live_maps,
    map_of,
    run,
    together,
)

OUTER = {
    "array": (BPF_MAP_TYPE_ARRAY_OF_MAPS, 0),
    "hash": (BPF_MAP_TYPE_HASH_OF_MAPS, 0),
    "hash-no-prealloc": (BPF_MAP_TYPE_HASH_OF_MAPS, BPF_F_NO_PREALLOC),
}
KEY = u32(0)
UAF = "use-after-free"
RACE = "BUG: KCSAN: data-race in"
DEFER_INNER_MAP_FREE = "876673364161"
REMOVE_SYNCHRONIZE_RCU = "bba1dc0b55ac"


async def outer_with(kernel: Kernel, kind: str) -> int:
    """The descriptor of an outer map, whose slot has the last reference to an inner array."""
    map_type, flags = OUTER[kind]
    inner = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 1)
    outer = await bpf_create_map_in_map(kernel, map_type, 4, inner, 1, flags)
    assert await bpf_map_update_elem(kernel, outer, KEY, u32(inner)) == 0
    await close(kernel, inner)
    return outer


async def read_inner(kernel: Kernel, outer: Any) -> None:
    inner = await outer.ops.map_lookup_elem(kernel, outer, KEY)
    if inner is not None:
        await read_map_value(inner, ValuePtr(inner.value, 0))


def reader_against(kind: str, change: str, *, sleepable: bool = False) -> Main:
    """A program that reads through the outer map, while a system call takes the inner map out."""

    async def main(kernel: Kernel) -> None:
        outer_fd = await outer_with(kernel, kind)
        new = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 1)
        outer, file = map_of(kernel, outer_fd), file_of(kernel, outer_fd)

        async def reader() -> None:
            async with syscall(kernel):
                async with rcu_read_lock_trace() if sleepable else rcu_read_lock():
                    await read_inner(kernel, outer)

        async def updater() -> None:
            async with syscall(kernel), bpf_disable_instrumentation(), rcu_read_lock():
                if change == "delete":
                    await outer.ops.map_delete_elem(kernel, outer, KEY)
                elif kind == "array":
                    await bpf_fd_array_map_update_elem(kernel, outer, file, KEY, u32(new), 0)
                else:
                    await bpf_fd_htab_map_update_elem(kernel, outer, file, KEY, u32(new), 0)

        await together(kernel, updater, reader)

    return main


# -- inner maps in v5.8, v5.10 and v6.8 ----------------------------------------------------------


@pytest.mark.parametrize("kind", OUTER)
def test_deleted_inner_map_is_freed_under_a_reader_in_v5_10(kind: str) -> None:
    found = explore(reader_against(kind, "delete"), "5.10", Dfs(1), stop=UAF)

    assert UAF in found.kinds


@pytest.mark.parametrize(
    ("inner_type", "function"),
    [
        (BPF_MAP_TYPE_ARRAY, "array_map_lookup_elem"),
        (BPF_MAP_TYPE_PERCPU_ARRAY, "percpu_array_map_lookup_elem"),
        (BPF_MAP_TYPE_HASH, "lookup_nulls_elem_raw"),
    ],
)
def test_every_type_of_inner_map_is_freed_under_a_reader(inner_type: int, function: str) -> None:
    """Also of a hash, whose free waits for callbacks only, of which there are none."""

    async def main(kernel: Kernel) -> None:
        inner_fd = await bpf_create_map(kernel, inner_type, 4, 8, 1)
        outer_fd = await bpf_create_map_in_map(kernel, BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, inner_fd, 1)
        assert await bpf_map_update_elem(kernel, inner_fd, KEY, bytes(100)) == 0
        assert await bpf_map_update_elem(kernel, outer_fd, KEY, u32(inner_fd)) == 0
        await close(kernel, inner_fd)
        outer = map_of(kernel, outer_fd)

        async def reader() -> None:
            async with syscall(kernel), rcu_read_lock():
                inner = await outer.ops.map_lookup_elem(kernel, outer, KEY)
                if inner is not None:
                    await inner.ops.map_lookup_elem(kernel, inner, KEY)

        async def delete() -> None:
            async with syscall(kernel), rcu_read_lock():
                await outer.ops.map_delete_elem(kernel, outer, KEY)

        await together(kernel, delete, reader)

    assert (UAF, function) in explore(main, "5.10", Dfs(1)).wrong


@pytest.mark.parametrize("version", ["5.8", "6.8"])
@pytest.mark.parametrize(
    "kind", ["array", "hash", pytest.param("hash-no-prealloc", marks=pytest.mark.slow)]
)
def test_deleted_inner_map_outlives_readers_before_and_after(kind: str, version: str) -> None:
    found = explore(reader_against(kind, "delete"), version, Dfs(1))

    assert not found.wrong


@pytest.mark.slow
@pytest.mark.parametrize("version", ["5.8", "6.8"])
def test_deleted_inner_map_outlives_readers_in_every_interleaving(version: str) -> None:
    found = explore(reader_against("array", "delete"), version)

    assert not found.wrong
    assert found.executions > 1_000


def test_removed_wait_is_what_v5_8_had() -> None:
    found = explore(
        reader_against("array", "delete"), "5.8", Dfs(1), add=[REMOVE_SYNCHRONIZE_RCU], stop=UAF
    )

    assert UAF in found.kinds


def test_deferred_free_is_what_v6_8_has() -> None:
    found = explore(
        reader_against("array", "delete"), "6.8", Dfs(1), remove=[DEFER_INNER_MAP_FREE], stop=UAF
    )

    assert UAF in found.kinds


def test_programs_that_sleep_need_their_own_grace_period() -> None:
    """The verifier of v5.10 keeps them from maps of maps; the model does not need it to."""
    main = reader_against("array", "delete", sleepable=True)

    assert not explore(main, "6.8", Dfs(1)).wrong
    mutant = explore(main, "6.8", Dfs(1), add=["mutant:inner-free-rcu-only"], stop=UAF)
    assert UAF in mutant.kinds


REPLACED_BEFORE_UNLINKED = (
    ("t0", "rcu_assign_pointer"),  # the updater has put the old inner map,
    ("kworker", ""),  # whose grace period starts;
    ("t1", "load .value+0"),  # a new reader still finds it,
    ("t0", ""),  # and nobody waits for that reader
)


@pytest.mark.parametrize("version", ["5.8", "5.10", "6.8"])
def test_preallocated_hash_puts_the_inner_map_too_early(version: str) -> None:
    """It puts the old inner map before the old element is unlinked, which no version mends."""
    main = reader_against("hash", "update")
    found = explore(main, version, Script(*REPLACED_BEFORE_UNLINKED))

    assert found.wrong == {(UAF, "read_map_value")}


@pytest.mark.parametrize(("version", "kinds"), [("5.8", set()), ("5.10", {UAF}), ("6.8", set())])
def test_hash_without_preallocation_puts_it_when_it_is_unlinked(
    version: str, kinds: set[str]
) -> None:
    main = reader_against("hash-no-prealloc", "update")
    found = explore(main, version, Script(*REPLACED_BEFORE_UNLINKED))

    assert found.kinds == kinds


@pytest.mark.parametrize(("version", "kinds"), [("5.10", {UAF}), ("6.8", set())])
def test_user_space_reads_the_id_of_an_inner_map_that_goes(version: str, kinds: set[str]) -> None:
    async def main(kernel: Kernel) -> None:
        outer_fd = await outer_with(kernel, "array")
        outer = map_of(kernel, outer_fd)

        async def look_up() -> None:
            async with syscall(kernel):
                await bpf_fd_array_map_lookup_elem(kernel, outer, KEY)

        async def delete() -> None:
            async with syscall(kernel), rcu_read_lock():
                await outer.ops.map_delete_elem(kernel, outer, KEY)

        await together(kernel, delete, look_up)

    assert explore(main, version, Dfs(1)).kinds == kinds


def test_free_of_the_outer_map_defers_no_inner_map(monkeypatch: pytest.MonkeyPatch) -> None:
    deferred = []

    async def call_rcu_tasks_trace(kernel: Kernel, function: Any, *args: Any) -> None:
        deferred.append(args)

    monkeypatch.setattr(map_refs, "call_rcu_tasks_trace", call_rcu_tasks_trace)

    async def close_outer(kernel: Kernel) -> None:
        await close(kernel, await outer_with(kernel, "array"))

    async def delete(kernel: Kernel) -> None:
        outer = await outer_with(kernel, "array")
        await bpf_map_delete_elem(kernel, outer, KEY)

    assert not explore(close_outer, "6.8", runs=1).wrong
    assert not deferred
    assert explore(delete, "6.8", runs=1).kinds == {"memory-leak"}
    assert len(deferred) == 1


def test_deferred_frees_may_pile_up() -> None:
    """Two readers, one updater that swaps inner maps many times."""

    async def main(kernel: Kernel) -> None:
        outer_fd = await outer_with(kernel, "array")
        outer = map_of(kernel, outer_fd)

        async def reader() -> None:
            for _ in range(3):
                async with syscall(kernel), rcu_read_lock():
                    await read_inner(kernel, outer)

        async def updater() -> None:
            for _ in range(4):
                inner = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 1)
                await bpf_map_update_elem(kernel, outer_fd, KEY, u32(inner))
                await close(kernel, inner)

        await together(kernel, reader, reader, updater)
        await close(kernel, outer_fd)

    assert not explore(main, "6.8", Pct(1), runs=100).wrong
    assert UAF in explore(main, "5.10", Pct(1), runs=100, stop=UAF).kinds


def test_what_a_slot_leads_to_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """The creation of an inner map, not its end, is ordered with the read of its id."""
    created = ("data-race", f"{RACE} bpf_map_alloc_id / bpf_map_fd_sys_lookup_elem")
    ended = ("data-race", f"{RACE} bpf_map_fd_sys_lookup_elem / bpf_map_free_id")

    async def main(kernel: Kernel) -> None:
        outer_fd = await outer_with(kernel, "array")

        async def look_up() -> None:
            await bpf_map_lookup_elem(kernel, outer_fd, KEY)

        async def create_and_insert() -> None:
            inner = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 1)
            await bpf_map_update_elem(kernel, outer_fd, KEY, u32(inner))

        await together(kernel, create_and_insert, look_up)

    def races() -> set[tuple[str, str]]:
        return explore(main, "6.8", RandomWalk(seed=1), runs=60, races=True).wrong

    assert not races()
    monkeypatch.setattr(map.BpfMap._specs["id"], "legal_races", "")
    assert races() == {ended}
    monkeypatch.setattr(fd_arraymap, "read_pointer_once", READ_ONCE)
    assert races() == {ended, created}


# -- references ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["5.8", "5.10", "6.8"])
@pytest.mark.parametrize("flags", [0, BPF_F_NO_PREALLOC])
def test_nothing_is_left_of_closed_maps(version: str, flags: int) -> None:
    freed: list[Kernel] = []

    async def main(kernel: Kernel) -> None:
        freed.append(kernel)
        inner = await bpf_create_map(kernel, BPF_MAP_TYPE_HASH, 4, 12, 3, flags)
        for outer_type in (BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_HASH_OF_MAPS):
            outer_flags = flags if outer_type == BPF_MAP_TYPE_HASH_OF_MAPS else 0
            outer = await bpf_create_map_in_map(kernel, outer_type, 4, inner, 2, outer_flags)
            for key in (0, 1, 0):
                assert await bpf_map_update_elem(kernel, outer, u32(key), u32(inner)) == 0
            assert await bpf_map_delete_elem(kernel, outer, u32(1)) == 0
            await close(kernel, outer)
        for key in (0, 1, 0):
            assert await bpf_map_update_elem(kernel, inner, u32(key), bytes(12)) == 0
        await close(kernel, inner)
        await close(kernel, await bpf_create_map(kernel, BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 2))

    run(main, version)

    assert live_maps(freed[0]) == []


def test_id_goes_with_the_last_reference_before_the_memory() -> None:
    async def main(kernel: Kernel) -> tuple[int, int, list[str]]:
        fd = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 1)
        before = len(kernel.subsystem(map_refs.MapIds).map_idr.value.entries)
        await close(kernel, fd)
        after = len(kernel.subsystem(map_refs.MapIds).map_idr.value.entries)
        return before, after, live_maps(kernel)

    assert run(main) == (1, 0, ["bpf_array#main.0"])


def two_updaters(kind: str) -> Main:
    """Two system calls replace the inner map of one slot; how often it is counted after that."""

    async def main(kernel: Kernel) -> int:
        outer_fd = await outer_with(kernel, kind)
        new = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 1)
        outer, file = map_of(kernel, outer_fd), file_of(kernel, outer_fd)
        update: Any = (
            bpf_fd_array_map_update_elem if kind == "array" else bpf_fd_htab_map_update_elem
        )

        async def updater() -> None:
            async with syscall(kernel), bpf_disable_instrumentation(), rcu_read_lock():
                await update(kernel, outer, file, KEY, u32(new), 0)

        await together(kernel, updater, updater)
        refcnt: int = map_of(kernel, new).refcnt.value
        await close(kernel, new)
        await close(kernel, outer_fd)
        return refcnt

    return main


@pytest.mark.parametrize("version", ["5.10", "6.8"])
@pytest.mark.parametrize("kind", OUTER)
def test_counts_are_balanced_whatever_the_order(kind: str, version: str) -> None:
    found = explore(two_updaters(kind), version, RandomWalk(seed=1), runs=100)

    assert not found.wrong
    assert found.outcomes == {2}


def test_forgotten_reference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def bpf_map_inc(map: object) -> None:
        pass

    monkeypatch.setattr(map_in_map, "bpf_map_inc", bpf_map_inc)

    assert UAF in explore(two_updaters("array"), "5.10", Dfs(0), stop=UAF).kinds


def test_forgotten_put_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What 1d4e1eab456e mended: a replaced element kept its inner map."""

    async def htab_put_fd_value(kernel: Kernel, htab: object, elem: object) -> None:
        pass

    monkeypatch.setattr(hashtab, "htab_put_fd_value", htab_put_fd_value)

    assert "memory-leak" in explore(two_updaters("hash"), "5.10", runs=1).kinds

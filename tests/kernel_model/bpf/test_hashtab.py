"""Hash maps: layout, operations, and walks of a bucket that changes meanwhile.

With 2 entries there are 2 buckets; the keys in EVEN are in bucket 0, those in ODD in bucket 1.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from kernel_model.bpf import hashtab, htab_alloc
from kernel_model.bpf.attr import (
    BPF_ANY,
    BPF_EXIST,
    BPF_F_LOCK,
    BPF_F_NO_COMMON_LRU,
    BPF_F_NO_PREALLOC,
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY_PROG,
    BPF_F_ZERO_SEED,
    BPF_MAP_CREATE,
    BPF_MAP_TYPE_HASH,
    BPF_NOEXIST,
    MapCreateAttr,
)
from kernel_model.bpf.capability import drop_capabilities
from kernel_model.bpf.fd_hashtab import htab_of_map_gen_lookup
from kernel_model.bpf.hashtab import (
    HTAB_MAP_LOOKUP_ELEM,
    htab_map_delete_elem,
    htab_map_gen_lookup,
    htab_map_lookup_elem,
    htab_map_update_elem,
)
from kernel_model.bpf.htab_elem import HtabElem, Node, lookup_elem_raw
from kernel_model.bpf.insn import (
    BPF_ADD,
    BPF_ALU64_IMM,
    BPF_DW,
    BPF_EMIT_CALL,
    BPF_JEQ,
    BPF_JMP_IMM,
    BPF_LDX_MEM,
    BPF_REG_0,
)
from kernel_model.bpf.jhash import jhash
from kernel_model.bpf.map import copy_map_value, read_map_value, read_map_value_locked
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import E2BIG, EEXIST, EINVAL, ENOENT, ENOMEM, EPERM
from kernel_model.linux.task import Guard, syscall
from kernel_model.rcu.tasks_trace import rcu_read_lock_trace
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
from sim.cells import Cell
from sim.macros import load, load_at
from sim.strategies.dfs import Dfs
from sim.threads import Body
from tests.kernel_model.bpf.maps import Main, explore, map_of, run, together

EVEN = [key for key in range(20) if jhash(u32(key), 0) & 1 == 0]
ODD = [key for key in range(20) if jhash(u32(key), 0) & 1]
UAF = "use-after-free"
PREALLOC = pytest.mark.parametrize("flags", [0, BPF_F_NO_PREALLOC], ids=["prealloc", "no-prealloc"])


def hash_map(max_entries: int = 3, value_size: int = 12, **fields: Any) -> MapCreateAttr:
    given: dict[str, Any] = {"map_type": BPF_MAP_TYPE_HASH, "key_size": 4} | fields
    return MapCreateAttr(value_size=value_size, max_entries=max_entries, **given)


def value_of(key: int) -> bytes:
    return (100 + key).to_bytes(8, "little")


async def filled(kernel: Kernel, flags: int, *keys: int, max_entries: int = 2) -> Any:
    """A map in which each key has the value `value_of` it; the later ones are found first."""
    fd = await bpf_create_map(kernel, BPF_MAP_TYPE_HASH, 4, 8, max_entries, flags)
    for key in keys:
        assert await bpf_map_update_elem(kernel, fd, u32(key), value_of(key)) == 0
    return map_of(kernel, fd)


# -- creation and layout -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attr", "result"),
    [
        (hash_map(), 0),
        (hash_map(map_flags=BPF_F_NO_PREALLOC | BPF_F_ZERO_SEED), 0),
        (hash_map(map_flags=1 << 10), -EINVAL),
        (hash_map(map_flags=BPF_F_RDONLY_PROG | BPF_F_WRONLY_PROG), -EINVAL),
        (hash_map(map_flags=BPF_F_NO_COMMON_LRU), -EINVAL),
        (hash_map(max_entries=0), -EINVAL),
        (hash_map(key_size=0), -EINVAL),
        (hash_map(value_size=0), -EINVAL),
        (hash_map(key_size=512), 0),
        (hash_map(key_size=513), -E2BIG),
        (hash_map(value_size=(1 << 22) - 512 - 48), -E2BIG),
        (hash_map(value_size=0, key_size=513), -EINVAL),
        (hash_map(max_entries=(1 << 31) + 1, map_flags=BPF_F_NO_PREALLOC), -E2BIG),
        (hash_map(max_entries=1 << 27, map_flags=BPF_F_NO_PREALLOC), -E2BIG),
    ],
)
def test_create(attr: MapCreateAttr, result: int) -> None:
    async def main(kernel: Kernel) -> int:
        return await bpf(kernel, BPF_MAP_CREATE, attr)

    assert run(main) == result


def test_seed_of_zero_is_for_the_privileged() -> None:
    async def main(kernel: Kernel) -> int:
        drop_capabilities(kernel)
        attr = hash_map(map_flags=BPF_F_ZERO_SEED | BPF_F_NO_COMMON_LRU)
        return await bpf(kernel, BPF_MAP_CREATE, attr)

    assert run(main) == -EPERM


def test_hash_is_that_of_jenkins() -> None:
    text = b"Four score and seven years ago"

    assert jhash(text, 0) == 0x1777_0551
    assert jhash(text, 1) == 0xCD62_8161
    assert jhash(b"", 0) == 0xDEAD_BEEF


def test_elements_have_the_offsets_of_struct_htab_elem() -> None:
    async def main(kernel: Kernel) -> None:
        fd = await bpf_create_map(kernel, BPF_MAP_TYPE_HASH, 12, 20, 3)
        await bpf_map_update_elem(kernel, fd, b"abcdefghijkl", bytes(range(1, 21)))
        found = map_of(kernel, fd)
        assert found.n_buckets == 4
        assert found.elem_size == 48 + 16 + 24
        head = found.buckets.bucket[jhash(b"abcdefghijkl", 0) & 3].head
        elem = await load(head)
        assert isinstance(elem, HtabElem)
        assert await load_at(head.addr, 8) == elem.addr
        assert elem.addr == found.elems.addr + elem.nth * found.elem_size
        assert await load_at(elem.addr + 40, 4) == jhash(b"abcdefghijkl", 0)
        assert await load_at(elem.addr + 48, 8) == int.from_bytes(b"abcdefgh", "little")
        assert await load_at(elem.addr + 48 + 16, 4) == 0x04030201
        assert elem.value.addr == elem.addr + 48 + 16

    run(main)


def test_look_up_is_generated() -> None:
    async def main(kernel: Kernel) -> Any:
        return await filled(kernel, 0)

    found = run(main)
    assert htab_map_gen_lookup(found) == [
        BPF_EMIT_CALL(HTAB_MAP_LOOKUP_ELEM),
        BPF_JMP_IMM(BPF_JEQ, BPF_REG_0, 0, 1),
        BPF_ALU64_IMM(BPF_ADD, BPF_REG_0, 56),
    ]
    assert htab_of_map_gen_lookup(found) == [
        BPF_EMIT_CALL(HTAB_MAP_LOOKUP_ELEM),
        BPF_JMP_IMM(BPF_JEQ, BPF_REG_0, 0, 2),
        BPF_ALU64_IMM(BPF_ADD, BPF_REG_0, 56),
        BPF_LDX_MEM(BPF_DW, BPF_REG_0, BPF_REG_0, 0),
    ]


# -- operations, one after the other -------------------------------------------------------------


@PREALLOC
@pytest.mark.parametrize("seed", range(5))
def test_it_is_a_mapping(flags: int, seed: int) -> None:
    random = Random(seed)
    expected: dict[int, bytes] = {}

    async def step(kernel: Kernel, fd: int) -> None:
        key = random.randrange(8)
        how = random.choice([BPF_ANY, BPF_ANY, BPF_NOEXIST, BPF_EXIST])
        if random.random() < 0.4:
            deleted = await bpf_map_delete_elem(kernel, fd, u32(key))
            assert deleted == (0 if expected.pop(key, None) else -ENOENT)
            return
        value = random.randbytes(12)
        error = await bpf_map_update_elem(kernel, fd, u32(key), value, how)
        if key in expected and how == BPF_NOEXIST:
            assert error == -EEXIST
        elif key not in expected and how == BPF_EXIST:
            assert error == -ENOENT
        elif key not in expected and len(expected) == 5:
            assert error == -E2BIG
        else:
            assert error == 0
            expected[key] = value

    async def main(kernel: Kernel) -> None:
        fd = await bpf(kernel, BPF_MAP_CREATE, hash_map(max_entries=5, map_flags=flags))
        for _ in range(40):
            await step(kernel, fd)
            for key in range(8):
                found = await bpf_map_lookup_elem(kernel, fd, u32(key))
                assert found == expected.get(key, -ENOENT)
        keys = []
        found = await bpf_map_get_next_key(kernel, fd, None)
        while isinstance(found, bytes):
            keys.append(int.from_bytes(found, "little"))
            found = await bpf_map_get_next_key(kernel, fd, found)
        assert found == -ENOENT
        assert sorted(keys) == sorted(expected)

    run(main)


def test_unknown_flags_come_first() -> None:
    async def main(kernel: Kernel) -> int:
        fd = await bpf_create_map(kernel, BPF_MAP_TYPE_HASH, 4, 8, 1)
        return await bpf_map_update_elem(kernel, fd, u32(0), bytes(8), BPF_EXIST + 1)

    assert run(main) == -EINVAL


@PREALLOC
def test_update_under_the_lock_is_in_place(flags: int) -> None:
    async def main(kernel: Kernel) -> None:
        attr = hash_map(value_size=16, map_flags=flags, spin_lock_off=8)
        fd = await bpf(kernel, BPF_MAP_CREATE, attr)
        found = map_of(kernel, fd)
        head = found.buckets.bucket[jhash(u32(1), 0) & 3].head
        lock = BPF_F_LOCK
        assert await bpf_map_update_elem(kernel, fd, u32(1), bytes(16), lock | BPF_EXIST) == -ENOENT
        assert await bpf_map_update_elem(kernel, fd, u32(1), bytes([1] * 16), lock) == 0
        before = head.value
        assert (
            await bpf_map_update_elem(kernel, fd, u32(1), bytes(16), lock | BPF_NOEXIST) == -EEXIST
        )
        assert await bpf_map_update_elem(kernel, fd, u32(1), bytes([2] * 16), lock) == 0
        assert head.value == before
        assert await bpf_map_update_elem(kernel, fd, u32(1), bytes([3] * 16)) == 0
        assert head.value != before
        value = await bpf_map_lookup_elem(kernel, fd, u32(1), lock)
        assert value == bytes([3] * 8 + [0] * 4 + [3] * 4)

    run(main)


def test_operation_outside_of_a_reader_is_warned_of() -> None:
    async def main(kernel: Kernel) -> None:
        found = await filled(kernel, 0)
        async with syscall(kernel):
            await htab_map_lookup_elem(kernel, found, u32(0))

    assert explore(main, runs=1).kinds == {"kernel-warning"}


@PREALLOC
def test_nothing_is_lost_when_memory_is_short(flags: int) -> None:
    async def main(kernel: Kernel) -> tuple[int, int]:
        fd = await bpf_create_map(kernel, BPF_MAP_TYPE_HASH, 4, 8, 1, flags)
        if fd < 0:
            return fd, 0
        found = map_of(kernel, fd)
        async with syscall(kernel), rcu_read_lock():
            error = await htab_map_update_elem(kernel, found, u32(0), bytes(8), BPF_ANY)
        await close(kernel, fd)
        return 0, error

    found = explore(main, faults=frozenset({"slab"}))

    updates = {0} if flags == 0 else {0, -ENOMEM}
    assert found.outcomes == {(-ENOMEM, 0)} | {(0, error) for error in updates}
    assert not found.wrong


# -- walks of a bucket that changes --------------------------------------------------------------


def look_up_against(
    flags: int, keys: list[int], wanted: int, *changes: tuple[str, int], max_entries: int = 2
) -> Main:
    """What a look-up of a key returns while others are written ("+") or deleted ("-")."""

    async def main(kernel: Kernel) -> int | None:
        found = await filled(kernel, flags, *keys, max_entries=max_entries)
        seen: list[int | None] = []

        async def look_up() -> None:
            async with syscall(kernel), rcu_read_lock():
                value = await htab_map_lookup_elem(kernel, found, u32(wanted))
                if value is None:
                    seen.append(None)
                else:
                    seen.append(int.from_bytes(await read_map_value(found, value), "little"))

        async def change() -> None:
            async with syscall(kernel), rcu_read_lock():
                for what, key in changes:
                    if what == "+":
                        value = value_of(key)
                        await htab_map_update_elem(kernel, found, u32(key), value, BPF_ANY)
                    else:
                        await htab_map_delete_elem(kernel, found, u32(key))

        await together(kernel, look_up, change)
        return seen[0]

    return main


IN_ORDER = {100 + EVEN[0]}


async def unchecked_walk(
    head: Cell[Node], hash: int, key: bytes, n_buckets: int
) -> HtabElem | None:
    """A look-up that believes in the bucket at whose end it arrives."""
    return (await lookup_elem_raw(head, hash, key))[0]


def test_walk_that_ends_in_another_bucket_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The element before the wanted one is deleted, and reused for the other bucket."""
    keys = [EVEN[0], EVEN[1]]
    main = look_up_against(0, keys, EVEN[0], ("-", EVEN[1]), ("+", ODD[0]))
    found = explore(main, strategy=Dfs(2), cpus=2)
    assert not found.wrong
    assert found.outcomes == IN_ORDER

    monkeypatch.setattr(hashtab, "lookup_nulls_elem_raw", unchecked_walk)
    assert explore(main, strategy=Dfs(2), cpus=2).outcomes == IN_ORDER | {None}


@PREALLOC
def test_key_is_found_while_others_in_its_bucket_come_and_go(flags: int) -> None:
    keys = [EVEN[0], EVEN[1]]
    changes = [("-", EVEN[1]), ("+", EVEN[2])]
    found = explore(look_up_against(flags, keys, EVEN[0], *changes), strategy=Dfs(2), cpus=2)

    assert not found.wrong
    assert found.outcomes == IN_ORDER


@PREALLOC
def test_key_that_is_replaced_may_be_missed_behind_another_one(flags: int) -> None:
    """The reader has passed the head when the new element comes there; then the old one goes."""
    main = look_up_against(flags, [EVEN[0], EVEN[1]], EVEN[0], ("+", EVEN[0]))
    found = explore(main, strategy=Dfs(1), cpus=2)

    assert not found.wrong
    assert found.outcomes == IN_ORDER | {None}


@PREALLOC
def test_key_that_is_replaced_is_found_at_the_head(flags: int) -> None:
    main = look_up_against(flags, [EVEN[0]], EVEN[0], ("+", EVEN[0]))

    assert explore(main, strategy=Dfs(2), cpus=2).outcomes == IN_ORDER


@pytest.mark.parametrize(("flags", "others"), [(0, {100 + EVEN[1]}), (BPF_F_NO_PREALLOC, set())])
def test_preallocated_elements_are_reused_under_a_reader(flags: int, others: set[int]) -> None:
    """A value pointer may come to lead to the value of another key; not without preallocation."""
    main = look_up_against(flags, [EVEN[0]], EVEN[0], ("-", EVEN[0]), ("+", EVEN[1]))
    found = explore(main, strategy=Dfs(1), cpus=2)

    assert not found.wrong
    assert found.outcomes == IN_ORDER | others | {None}


def test_old_and_new_value_are_whole_under_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = bytes([1] * 8 + [0] * 8 + [1] * 8), bytes([2] * 8 + [0] * 8 + [2] * 8)

    async def main(kernel: Kernel) -> bytes:
        attr = hash_map(max_entries=1, value_size=24, spin_lock_off=8)
        fd = await bpf(kernel, BPF_MAP_CREATE, attr)
        await bpf_map_update_elem(kernel, fd, u32(0), old)
        found = map_of(kernel, fd)
        seen: list[bytes] = []

        async def write() -> None:
            async with syscall(kernel), rcu_read_lock():
                await htab_map_update_elem(kernel, found, u32(0), new, BPF_F_LOCK)

        async def look_up() -> None:
            async with syscall(kernel), rcu_read_lock():
                value = await htab_map_lookup_elem(kernel, found, u32(0))
                assert value is not None
                seen.append(await read_map_value_locked(found, value))

        await together(kernel, write, look_up)
        return seen[0]

    assert explore(main, strategy=Dfs(2), cpus=2).outcomes == {old, new}

    monkeypatch.setattr(hashtab, "copy_map_value_locked", copy_map_value)
    assert len(explore(main, strategy=Dfs(2), cpus=2).outcomes) > 2


# -- lifetime of elements ------------------------------------------------------------------------


def delete_under(reader: Callable[[], Guard]) -> Main:
    """An element that is not preallocated is deleted while a reader has its value."""

    async def main(kernel: Kernel) -> None:
        found = await filled(kernel, BPF_F_NO_PREALLOC, EVEN[0])

        async def look_up() -> None:
            async with syscall(kernel), reader():
                value = await htab_map_lookup_elem(kernel, found, u32(EVEN[0]))
                if value is not None:
                    await read_map_value(found, value)

        async def delete() -> None:
            async with syscall(kernel), rcu_read_lock():
                await htab_map_delete_elem(kernel, found, u32(EVEN[0]))

        await together(kernel, look_up, delete)

    return main


def test_elements_outlive_readers_of_rcu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not explore(delete_under(rcu_read_lock), strategy=Dfs(2), cpus=2).wrong

    monkeypatch.setattr(hashtab, "call_rcu", at_once)
    assert UAF in explore(delete_under(rcu_read_lock), strategy=Dfs(2), cpus=2, stop=UAF).kinds


async def at_once(kernel: Kernel, function: Callable[..., Body], *args: Any) -> None:
    await function(*args)


def test_elements_do_not_outlive_programs_that_sleep() -> None:
    """Why v5.10 keeps them from such maps."""
    found = explore(delete_under(rcu_read_lock_trace), strategy=Dfs(2), cpus=2, stop=UAF)

    assert UAF in found.kinds


def test_map_outlives_the_callbacks_of_its_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(kernel: Kernel) -> None:
        fd = await bpf_create_map(kernel, BPF_MAP_TYPE_HASH, 4, 8, 1, BPF_F_NO_PREALLOC)
        await bpf_map_update_elem(kernel, fd, u32(0), bytes(8))
        await bpf_map_delete_elem(kernel, fd, u32(0))
        await close(kernel, fd)

    async def no_wait(kernel: Kernel) -> None:
        pass

    assert not explore(main, strategy=Dfs(1)).wrong

    monkeypatch.setattr(htab_alloc, "rcu_barrier", no_wait)
    assert UAF in explore(main, strategy=Dfs(1), stop=UAF).kinds

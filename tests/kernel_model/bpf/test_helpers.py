"""Helpers as programs call them: results, choices, locks, user memory."""

import pytest

from kernel_model.bpf.attr import (
    BPF_F_INNER_MAP,
    BPF_MAP_CREATE,
    BPF_MAP_TYPE_ARRAY,
    BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_HASH,
    BPF_MAP_TYPE_HASH_OF_MAPS,
    BPF_MAP_TYPE_PERCPU_ARRAY,
    MapCreateAttr,
)
from kernel_model.bpf.core import BpfProgramError, bpf_prog_run
from kernel_model.bpf.helpers import HELPERS, PRANDOM_U32, TASK_SIZE, UserMemory
from kernel_model.bpf.hooks import (
    ClsBpfHead,
    classifier,
    cls_bpf_change,
    sch_handle_ingress,
    u64s,
)
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_SCHED_CLS
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import EEXIST, EFAULT, EINVAL, ENOENT
from kernel_model.linux.task import syscall, task
from kernel_model.uapi import (
    bpf,
    bpf_create_map,
    bpf_create_map_in_map,
    bpf_map_lookup_elem,
    bpf_map_update_elem,
    u32,
)
from sim.clock import sleep
from sim.errors import MisuseError
from sim.macros import join
from sim.strategies.dfs import Dfs
from tests.kernel_model.bpf.running import Once, explore, load, program, run, slept, traced

KEY = """
    r6 = r1
    *(u32 *)(r10 -4) = 1
    r2 = r10
    r2 += -4
"""

LOOKUP = f"""
    {KEY}
    r1 = map[m]
    call bpf_map_lookup_elem
    if r0 == 0 goto missing
    r0 = *(u32 *)(r0 +0)
    exit
missing:
    r0 = -1
    exit
"""

UPDATE = f"""
    {KEY}
    *(u64 *)(r10 -16) = 55
    r1 = map[m]
    r3 = r10
    r3 += -16
    r4 = *(u64 *)(r6 +0)
    call bpf_map_update_elem
    exit
"""

DELETE = f"{KEY}\nr1 = map[m]\ncall bpf_map_delete_elem\nexit"


def errno(result: int) -> int:
    return (1 << 32) - result


@pytest.mark.parametrize("map_type", [BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH])
def test_program_updates_and_looks_up(map_type: int) -> None:
    async def main(kernel: Kernel) -> list[int]:
        maps = {"m": await bpf_create_map(kernel, map_type, 4, 8, 2)}
        update = await load(kernel, UPDATE, maps=maps)
        lookup = await load(kernel, LOOKUP, maps=maps)
        return [await traced(kernel, update, 0), await traced(kernel, lookup)]

    assert run(main) == [0, 55]


def test_map_functions_fail_with_an_errno() -> None:
    async def main(kernel: Kernel) -> list[int]:
        maps = {"m": await bpf_create_map(kernel, BPF_MAP_TYPE_HASH, 4, 8, 2)}
        update = await load(kernel, UPDATE, maps=maps)
        delete = await load(kernel, DELETE, maps=maps)
        return [
            errno(await traced(kernel, delete)),
            await traced(kernel, update, 1),
            errno(await traced(kernel, update, 1)),
            errno(await traced(kernel, update, 77)),
            await traced(kernel, delete),
        ]

    assert run(main) == [ENOENT, 0, EEXIST, EINVAL, 0]


def test_lookup_out_of_range_finds_nothing() -> None:
    async def main(kernel: Kernel) -> int:
        maps = {"m": await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 1)}
        return await traced(kernel, await load(kernel, LOOKUP, maps=maps))

    assert run(main) == 0xFFFF_FFFF


def test_per_cpu_array_gives_the_value_of_this_cpu() -> None:
    code = f"""
        {KEY}
        r1 = map[m]
        call bpf_map_lookup_elem
        if r0 == 0 goto missing
        r7 = r0
        call bpf_get_smp_processor_id
        *(u32 *)(r7 +0) = r0
    missing:
        r0 = 0
        exit
    """

    async def main(kernel: Kernel) -> bytes | int:
        m = await bpf_create_map(kernel, BPF_MAP_TYPE_PERCPU_ARRAY, 4, 4, 2)
        fd = await load(kernel, code, maps={"m": m})
        await join(await task(kernel, traced, kernel, fd, cpu=1))
        await join(await task(kernel, traced, kernel, fd, cpu=3))
        return await bpf_map_lookup_elem(kernel, m, u32(1))

    values = [0, 1, 0, 3, 0]
    assert run(main) == b"".join(value.to_bytes(8, "little") for value in values)


AMBIGUOUS = f"""
    {KEY}
    r1 = *(u64 *)(r1 +0)
    if r1 == 0 goto second
    r1 = map[m]
    goto found
second:
    r1 = map[n]
found:
    r3 = r10
    r3 += -16
    r4 = 0
    *(u64 *)(r10 -16) = 5
"""


def test_ambiguous_map_goes_through_the_helper() -> None:
    async def main(kernel: Kernel) -> list[int]:
        m = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 2)
        n = await bpf_create_map(kernel, BPF_MAP_TYPE_HASH, 4, 4, 2)
        await bpf_map_update_elem(kernel, m, u32(1), u32(10))
        await bpf_map_update_elem(kernel, n, u32(1), u32(20))
        lookup = f"{AMBIGUOUS}\ncall 1\nif r0 == 0 goto out\nr0 = *(u32 *)(r0 +0)\nout: exit"
        found = await load(kernel, lookup, maps={"m": m, "n": n})
        change = await load(kernel, f"{AMBIGUOUS}\ncall 2\nexit", maps={"m": m, "n": n})
        remove = await load(kernel, f"{AMBIGUOUS}\ncall 3\nexit", maps={"m": m, "n": n})
        results = [await traced(kernel, found, which) for which in (1, 0)]
        results += [await traced(kernel, change, which) for which in (1, 0)]
        results += [await traced(kernel, found, which) for which in (1, 0)]
        removed = [await traced(kernel, remove, which) for which in (1, 0)]
        return [*results, errno(removed[0]), removed[1], await traced(kernel, found, 0)]

    assert run(main) == [10, 20, 0, 0, 5, 5, EINVAL, 0, 0]


def test_generic_helper_warns_without_rcu_read_lock() -> None:
    async def main(kernel: Kernel) -> None:
        maps = {
            name: await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 2) for name in ("m", "n")
        }
        await slept(kernel, f"{AMBIGUOUS}\ncall 2\nexit", maps, 0)

    assert "bpf_map_update_elem outside of rcu_read_lock()" in str(explore(main).wrong)


@pytest.mark.parametrize(
    ("outer_type", "inner_type", "flags"),
    [
        (BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_ARRAY, 0),
        (BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP),
        (BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_HASH, 0),
        (BPF_MAP_TYPE_HASH_OF_MAPS, BPF_MAP_TYPE_ARRAY, 0),
        (BPF_MAP_TYPE_HASH_OF_MAPS, BPF_MAP_TYPE_HASH, 0),
    ],
)
def test_lookup_in_an_inner_map(outer_type: int, inner_type: int, flags: int) -> None:
    code = f"""
        {KEY}
        r1 = map[outer]
        call bpf_map_lookup_elem
        if r0 == 0 goto missing
        r2 = r10
        r2 += -4
        r1 = r0
        call bpf_map_lookup_elem
        if r0 == 0 goto missing
        r0 = *(u32 *)(r0 +0)
        exit
    missing:
        r0 = -1
        exit
    """

    async def main(kernel: Kernel) -> list[int]:
        inner = await bpf_create_map(kernel, inner_type, 4, 4, 2, flags)
        outer = await bpf_create_map_in_map(kernel, outer_type, 4, inner, 2)
        fd = await load(kernel, code, maps={"outer": outer})
        before = await traced(kernel, fd)
        await bpf_map_update_elem(kernel, inner, u32(1), u32(33))
        await bpf_map_update_elem(kernel, outer, u32(1), u32(inner))
        return [before, await traced(kernel, fd)]

    assert run(main) == [0xFFFF_FFFF, 33]


def test_random_number_is_one_of_two() -> None:
    async def main(kernel: Kernel) -> int:
        return await traced(kernel, await load(kernel, "call bpf_get_prandom_u32\nexit"))

    assert explore(main).returned == list(PRANDOM_U32)


def test_time_is_virtual() -> None:
    async def main(kernel: Kernel) -> int:
        await sleep(5_000)
        return await traced(kernel, await load(kernel, "call bpf_ktime_get_ns\nexit"))

    assert run(main) == 5_000


# -- bpf_spin_lock -------------------------------------------------------------------------------

COUNT = f"""
    {KEY}
    r1 = map[m]
    call bpf_map_lookup_elem
    if r0 == 0 goto missing
    r6 = r0
    LOCK
    r1 = *(u32 *)(r6 +4)
    r1 += 1
    *(u32 *)(r6 +4) = r1
    UNLOCK
missing:
    r0 = 0
    exit
"""


@pytest.mark.parametrize("locked", [False, True])
def test_lock_in_a_value_keeps_updates(locked: bool) -> None:
    async def packet(kernel: Kernel, head: ClsBpfHead) -> None:
        async with syscall(kernel):
            await sch_handle_ingress(kernel, head, b"")

    async def main(kernel: Kernel) -> bytes | int:
        head = classifier(kernel)
        attr = MapCreateAttr(
            map_type=BPF_MAP_TYPE_ARRAY, key_size=4, value_size=8, max_entries=2, spin_lock_off=0
        )
        m = await bpf(kernel, BPF_MAP_CREATE, attr)
        code = COUNT.replace("UNLOCK", "r1 = r6\ncall bpf_spin_unlock" if locked else "")
        code = code.replace("LOCK", "r1 = r6\ncall bpf_spin_lock" if locked else "")
        fd = await load(kernel, code, BPF_PROG_TYPE_SCHED_CLS, {"m": m})
        async with syscall(kernel):
            assert await cls_bpf_change(kernel, head, fd) == 0
        tasks = [await task(kernel, packet, kernel, head) for _ in range(2)]
        for started in tasks:
            await join(started)
        value = await bpf_map_lookup_elem(kernel, m, u32(1))
        assert isinstance(value, bytes)
        return value[4]

    explored = explore(main, strategy=Dfs(2))
    assert set(explored.returned) == ({2} if locked else {1, 2})
    assert not explored.wrong


# -- user memory ---------------------------------------------------------------------------------

COPY = """
    *(u64 *)(r10 -8) = -1
    r3 = *(u64 *)(r1 +0)
    r2 = 8
    r1 = r10
    r1 += -8
    call bpf_copy_from_user
    if r0 != 0 goto failed
    r0 = *(u32 *)(r10 -8)
    exit
failed:
    r1 = *(u64 *)(r10 -8)
    if r1 != 0 goto bad
    exit
bad:
    r0 = 4242
    exit
"""


@pytest.mark.parametrize("skip", [0, 4])
def test_copy_from_user(skip: int) -> None:
    async def main(kernel: Kernel) -> int | None:
        memory = UserMemory(kernel, b"\1\0\0\0\2\0\0\0\0\0\0\0")
        return await slept(kernel, COPY, {}, memory.addr + skip)

    assert run(main) == (2 if skip else 1)


@pytest.mark.parametrize("addr", [0, 0x40_0008, 0x50_0000, 0xFFFF_8880_0000_0000])
def test_copy_from_unmapped_memory_leaves_zeroes(addr: int) -> None:
    async def main(kernel: Kernel) -> int:
        UserMemory(kernel, b"\1" * 12)
        result = await slept(kernel, COPY, {}, addr)
        assert result is not None
        return errno(result)

    assert run(main) == EFAULT


def test_copy_faults_by_choice() -> None:
    once = Once(faults=frozenset({"usercopy"}))
    calls = {number: proto.call for number, proto in HELPERS.items()}
    prog = program(once.memory, COPY, calls)
    addr = UserMemory(once.kernel, b"\1" * 8).addr

    async def main() -> int:
        async with syscall(once.kernel):
            return await bpf_prog_run(once.kernel, prog, u64s(addr))

    assert once.explore(main) == {0x0101_0101, (1 << 32) - EFAULT}


def test_copy_into_a_map_value_is_visible() -> None:
    code = f"""
        r7 = r1
        {KEY}
        r1 = map[m]
        call bpf_map_lookup_elem
        if r0 == 0 goto out
        r1 = r0
        r2 = 6
        r3 = *(u64 *)(r7 +0)
        call bpf_copy_from_user
    out:
        exit
    """

    async def main(kernel: Kernel) -> bytes | int:
        m = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 8, 2)
        memory = UserMemory(kernel, b"abcdef", addr=0x1000)
        assert await slept(kernel, code, {"m": m}, memory.addr) == 0
        return await bpf_map_lookup_elem(kernel, m, u32(1))

    assert run(main) == b"abcdef\0\0"


def test_user_memory_has_its_place() -> None:
    once = Once()
    UserMemory(once.kernel, b"12", addr=0x1000)

    with pytest.raises(MisuseError, match="below"):
        UserMemory(once.kernel, b"12", addr=TASK_SIZE - 1)
    with pytest.raises(MisuseError, match="already"):
        UserMemory(once.kernel, b"12", addr=0x1001)


# -- wrong arguments, which no verified program passes -------------------------------------------


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("r1 = 0x1000\nr2 = r10\ncall 1\nexit", "there is no map at 0x1000"),
        ("r1 = 0x1000\ncall 93\nexit", "there is no bpf_spin_lock at 0x1000"),
        ("r1 = r10\nr1 += -4\nr2 = 8\nr3 = 0\ncall 148\nexit", "outside of its stack"),
        ("r1 = r10\ncall 148\nexit", "r2 is not initialised"),
    ],
)
def test_wrong_argument_is_an_error_of_the_program(code: str, message: str) -> None:
    once = Once()
    calls = {number: proto.call for number, proto in HELPERS.items()}
    prog = program(once.memory, code, calls)

    async def main() -> int:
        async with syscall(once.kernel):
            return await bpf_prog_run(once.kernel, prog)

    with pytest.raises(BpfProgramError, match=message):
        once.run(main)


def test_running_a_freed_program_is_noticed_when_it_returns_from_sleep() -> None:
    once = Once()
    calls = {number: proto.call for number, proto in HELPERS.items()}
    prog = program(once.memory, "r1 = r10\nr1 += -8\nr2 = 0\nr3 = 0\ncall 148\nexit", calls)

    async def main() -> int:
        async with syscall(once.kernel):
            prog.freed = True
            return await bpf_prog_run(once.kernel, prog)

    once.run(main)
    assert [fault.kind for fault in once.faults] == ["use-after-free"]

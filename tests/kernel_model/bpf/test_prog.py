"""Loading: error codes and their order; references; a program keeps its maps until it is gone."""

from dataclasses import replace
from typing import Any

import pytest

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_ARRAY, BPF_PROG_LOAD
from kernel_model.bpf.capability import drop_capabilities
from kernel_model.bpf.hooks import (
    attach_sleepable,
    bpf_raw_tracepoint_attach,
    call_sleepable,
    detach_sleepable,
    sleepable_hook,
    trace,
    tracepoint,
)
from kernel_model.bpf.insn import BPF_EXIT_INSN, BPF_MOV64_IMM, Insn
from kernel_model.bpf.prog import BpfProg, bpf_prog_get, bpf_prog_put
from kernel_model.bpf.prog_attr import (
    BPF_PROG_TYPE_KPROBE,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    ProgLoadAttr,
)
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import (
    E2BIG,
    EBADF,
    EFAULT,
    EINVAL,
    EMFILE,
    ENOMEM,
    EPERM,
)
from kernel_model.linux.task import syscall, task
from kernel_model.rcu.tasks_trace import call_rcu_tasks_trace
from kernel_model.rcu.tree import call_rcu
from kernel_model.uapi import bpf, bpf_create_map, bpf_map_update_elem, close, u32
from sim.errors import MisuseError
from sim.macros import join
from sim.strategies.dfs import Dfs
from tests.kernel_model.bpf.running import explore, load, load_sleepable, run, traced

NOTHING = (BPF_MOV64_IMM(0, 0), BPF_EXIT_INSN())
GOOD = ProgLoadAttr(prog_type=BPF_PROG_TYPE_RAW_TRACEPOINT, insns=NOTHING, prog_name="nothing")

# What is wrong, and the errno, in the order in which it is looked at.
FAULTS: list[tuple[dict[str, Any], int]] = [
    ({"unused_tail": True}, EINVAL),
    ({"prog_flags": 1 << 5}, EINVAL),
    ({"license": None}, EFAULT),
    ({"insn_cnt": 0}, E2BIG),
    ({"attach_to": "vfs_read"}, EINVAL),
    ({"insns": None, "insn_cnt": 2}, EFAULT),
    ({"prog_type": 31}, EINVAL),
    ({"prog_name": "a name"}, EINVAL),
    ({"insns": (Insn(0xFF), BPF_EXIT_INSN())}, EINVAL),
]


def attempt(attr: ProgLoadAttr, *, capable: bool = True, **options: Any) -> int:
    """0, or the errno of loading."""

    async def main(kernel: Kernel) -> int:
        if not capable:
            drop_capabilities(kernel)
        return -min(await bpf(kernel, BPF_PROG_LOAD, attr), 0)

    errno: int = run(main, **options)
    return errno


def test_good_program_is_loaded() -> None:
    assert attempt(GOOD) == 0


@pytest.mark.parametrize(("wrong", "errno"), FAULTS, ids=range(len(FAULTS)))
def test_fault_has_its_errno(wrong: dict[str, Any], errno: int) -> None:
    assert attempt(replace(GOOD, **wrong)) == errno


@pytest.mark.parametrize("first", range(len(FAULTS) - 1))
def test_faults_are_looked_at_in_this_order(first: int) -> None:
    """Everything from `first` on is wrong, as far as it can be wrong at once."""
    attr = GOOD
    for wrong, _ in reversed(FAULTS[first:]):
        attr = replace(attr, **wrong)

    assert attempt(attr) == FAULTS[first][1]


@pytest.mark.parametrize(
    ("insn_cnt", "capable", "errno"),
    [
        (4096, False, EPERM),
        (4097, False, E2BIG),
        (1_000_000, True, EFAULT),
        (1_000_001, True, E2BIG),
    ],
)
def test_how_many_instructions_may_be_loaded(insn_cnt: int, capable: bool, errno: int) -> None:
    assert attempt(replace(GOOD, insn_cnt=insn_cnt), capable=capable) == errno


def test_instructions_end_in_an_unmapped_page() -> None:
    assert attempt(replace(GOOD, insn_cnt=3)) == EFAULT


def test_program_type_that_only_linux_has_is_misuse() -> None:
    with pytest.raises(MisuseError, match="programs of type 2 are not modelled"):
        attempt(replace(GOOD, prog_type=BPF_PROG_TYPE_KPROBE))


def test_allocation_and_copies_fail_by_choice() -> None:
    async def main(kernel: Kernel) -> int:
        return min(await bpf(kernel, BPF_PROG_LOAD, GOOD), 0)

    assert set(explore(main, faults=frozenset({"slab"})).returned) == {0, -ENOMEM}
    assert set(explore(main, faults=frozenset({"usercopy"})).returned) == {0, -EFAULT}


def test_too_many_descriptors() -> None:
    async def main(kernel: Kernel) -> int:
        fd = 0
        while fd >= 0:
            fd = await bpf(kernel, BPF_PROG_LOAD, GOOD)
        for taken in range(32):
            await close(kernel, taken)
        return -fd

    assert run(main) == EMFILE


def test_log_says_why() -> None:
    log = bytearray()
    errno = attempt(replace(GOOD, insns=(BPF_EXIT_INSN(),), log_buf=log))

    assert errno > 0
    assert log.decode() == "0: (95) exit\nR0 !read_ok\n"


def test_log_of_an_accepted_program() -> None:
    log = bytearray()

    assert attempt(replace(GOOD, log_buf=log)) == 0
    assert log.decode() == "processed 2 insns (limit 1000000)\n"


# -- references ----------------------------------------------------------------------------------


def test_program_is_found_by_its_descriptor_only() -> None:
    async def main(kernel: Kernel) -> list[Any]:
        not_a_prog = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1)
        fd = await load(kernel, NOTHING, name="nothing")
        async with syscall(kernel):
            found = [await bpf_prog_get(kernel, n) for n in (77, not_a_prog, fd)]
            prog = found[2]
            assert isinstance(prog, BpfProg)
            await bpf_prog_put(kernel, prog)
        return [*found[:2], prog.text.name]

    assert run(main) == [-EBADF, -EINVAL, "bpf_prog_nothing"]


def test_refused_program_leaves_nothing_behind() -> None:
    async def main(kernel: Kernel) -> bool:
        m = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1)
        insns = assemble("r1 = map[m]\nexit", {"m": m})
        refused = await bpf(kernel, BPF_PROG_LOAD, replace(GOOD, insns=insns))
        await close(kernel, m)
        return refused < 0

    assert run(main)


def test_program_keeps_its_map() -> None:
    async def main(kernel: Kernel) -> int:
        m = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1)
        fd = await load(kernel, LOOKUP, maps={"m": m})
        await bpf_map_update_elem(kernel, m, u32(0), u32(9))
        await close(kernel, m)
        result = await traced(kernel, fd)
        await close(kernel, fd)
        return result

    assert run(main) == 9


LOOKUP = """
    *(u32 *)(r10 -4) = 0
    r2 = r10
    r2 += -4
    r1 = map[m]
    call bpf_map_lookup_elem
    if r0 == 0 goto out
    r0 = *(u32 *)(r0 +0)
out:
    exit
"""


def test_error_of_a_program_is_a_finding_about_it() -> None:
    """The offset of this access varies, which the light walk does not follow."""
    code = "call 7\nr0 &= 8\nr1 = r10\nr1 += r0\n*(u64 *)(r1 -8) = 0\nr0 = 0\nexit"

    async def main(kernel: Kernel) -> None:
        await traced(kernel, await load(kernel, code, name="off"))

    found = str(explore(main).wrong)
    assert "BpfProgramError" in found
    assert "bpf_prog_off: insn 4: (7a) *(u64 *)(r1 -8) = 0: " in found


async def detach_while_running(kernel: Kernel) -> int:
    """A task runs a program while its last reference goes; its map has no other one."""
    results: list[int] = []

    async def passer_by() -> None:
        async with syscall(kernel):
            results.extend(await trace(kernel, tp))

    tp = tracepoint(kernel, "tp")
    m = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1)
    fd = await load(kernel, LOOKUP, maps={"m": m})
    link = await bpf_raw_tracepoint_attach(kernel, "tp", fd)
    await close(kernel, m)
    await close(kernel, fd)
    for started in (await task(kernel, passer_by), await task(kernel, close, kernel, link)):
        await join(started)
    return len(results)


@pytest.mark.parametrize("preempt", ["full", "none"])
def test_map_lives_until_a_grace_period_after_the_last_reference(preempt: str) -> None:
    explored = explore(detach_while_running, strategy=Dfs(1), preempt=preempt)

    assert not explored.wrong
    assert set(explored.returned) == {0, 1}


def test_without_the_grace_period_the_map_is_used_after_its_end() -> None:
    async def at_once(kernel: Kernel, function: Any, *args: Any) -> None:
        del kernel
        await function(*args)

    async def main(kernel: Kernel) -> int:
        kernel.replace(call_rcu, at_once)
        return await detach_while_running(kernel)

    assert "use-after-free" in explore(main, strategy=Dfs(1), stop="use-after-free").wrong


async def free_while_asleep(kernel: Kernel) -> None:
    """The last reference to a program goes while a task sleeps in it."""

    async def passer_by() -> None:
        async with syscall(kernel):
            await call_sleepable(kernel, hook, 0)

    async def detach() -> None:
        async with syscall(kernel):
            assert await detach_sleepable(kernel, hook) == 0

    hook = sleepable_hook(kernel, "bpf_modify_return_test")
    m = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1)
    fd = await load_sleepable(kernel, f"{LOOKUP.replace('exit', '')}{SLEEP}", {"m": m})
    async with syscall(kernel):
        assert await attach_sleepable(kernel, hook, fd) == 0
    await close(kernel, fd)
    await close(kernel, m)
    for started in (await task(kernel, passer_by), await task(kernel, detach)):
        await join(started)


SLEEP = "r1 = r10\nr1 += -8\nr2 = 8\nr3 = 0\ncall bpf_copy_from_user\nexit"


def test_sleepable_program_lives_until_a_trace_grace_period() -> None:
    assert not explore(free_while_asleep, strategy=Dfs(1)).wrong


def test_with_an_rcu_grace_period_a_sleepable_program_returns_into_freed_text() -> None:
    async def wrong_flavour(kernel: Kernel, function: Any, *args: Any) -> None:
        await call_rcu(kernel, function, *args)

    async def main(kernel: Kernel) -> None:
        kernel.replace(call_rcu_tasks_trace, wrong_flavour)
        await free_while_asleep(kernel)

    assert "use-after-free" in explore(main, strategy=Dfs(1), stop="use-after-free").wrong

"""Running tail calls: how many succeed, what they leave, and which programs may make them."""

from __future__ import annotations

import pytest

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import (
    BPF_F_SLEEPABLE,
    BPF_MODIFY_RETURN,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_TRACING,
    ProgLoadAttr,
)
from kernel_model.bpf.syscall import sys_bpf
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import EACCES, EINVAL
from kernel_model.linux.task import syscall
from kernel_model.uapi import (
    bpf_create_map,
    bpf_map_delete_elem,
    bpf_map_lookup_elem,
    bpf_map_update_elem,
    u32,
)
from sim.explore import Budget, Explorer, Result
from sim.strategies.random_walk import RandomWalk
from sim.workload import find
from tests.kernel_model.bpf.maps import explore, run
from tests.kernel_model.bpf.running import load, traced

TAIL = "r2 = map[progs]\nr3 = 0\ncall bpf_tail_call\n"
VARIABLE = "r2 = map[progs]\nr3 = *(u64 *)(r1 +0)\ncall bpf_tail_call\n"
RETURN = "r0 = 99\nexit\n"
TARGET = "r6 = 1\nr7 = 2\nr8 = 3\nr9 = 4\n*(u64 *)(r10 -512) = 5\nr0 = 42\nexit"


async def prog_array(kernel: Kernel, entries: int = 1) -> int:
    return await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, entries)


# -- how many ------------------------------------------------------------------------------------


def counted(
    params: dict[str, str],
    version: str = "5.10",
    add: tuple[str, ...] = (),
    remove: tuple[str, ...] = (),
) -> Result:
    """One execution of the workload that counts the runs of a program."""
    program = find("tailcall_counter").prepare(params, version=version, add=add, remove=remove)
    return Explorer(program, RandomWalk(0), Budget(executions=1)).explore()


def is_unbounded(result: Result) -> bool:
    kinds = [found.finding.kind for found in result.findings]
    assert kinds in ([], ["unbounded-loop"])
    return bool(kinds)


HIERARCHY, OFFSET = "116e04ba1459", "ff672c67ee76"


@pytest.mark.parametrize(
    ("version", "add", "params"),
    [
        *[(version, (), {"shape": "chain"}) for version in ("5.5", "5.9", "5.10", "6.1", "6.12")],
        *[(version, (), {"shape": "subprog"}) for version in ("5.10", "5.14", "6.1", "6.12")],
        ("6.12", (), {"shape": "tree"}),
        ("5.10", (HIERARCHY,), {"shape": "tree"}),
        ("5.10", (), {"shape": "subprog", "depth": "8"}),
        ("5.10", (), {"shape": "subprog", "depth": "16"}),
        ("5.10", (), {"shape": "chain", "depth": "12"}),
        ("5.10", (OFFSET,), {"shape": "subprog", "depth": "12"}),
        ("6.1", (), {"shape": "subprog", "depth": "12"}),
    ],
    ids=str,
)
def test_33_tail_calls_succeed_so_there_are_34_runs(
    version: str, add: tuple[str, ...], params: dict[str, str]
) -> None:
    result = counted(params, version, add)

    assert not is_unbounded(result)
    assert list(result.outcomes) == [(34,)]


@pytest.mark.parametrize(
    ("version", "remove", "params"),
    [
        ("5.10", (), {"shape": "tree"}),
        ("6.8", (), {"shape": "tree"}),
        ("6.12", (HIERARCHY,), {"shape": "tree"}),
        ("5.10", (), {"shape": "subprog", "depth": "12"}),
        ("5.14", (), {"shape": "subprog", "depth": "12"}),
        ("6.1", (OFFSET,), {"shape": "subprog", "depth": "12"}),
    ],
    ids=str,
)
def test_there_is_no_end_of_tail_calls(
    version: str, remove: tuple[str, ...], params: dict[str, str]
) -> None:
    assert is_unbounded(counted(params, version, remove=remove))


@pytest.mark.parametrize("depth", ["1", "4", "20"])
def test_a_counter_that_is_read_from_another_place_is_another_number(depth: str) -> None:
    """What lies there depends on who used the stack before."""
    result = counted({"shape": "subprog", "depth": depth})
    fixed = counted({"shape": "subprog", "depth": depth}, add=(OFFSET,))

    assert is_unbounded(result) or list(result.outcomes) != [(34,)]
    assert list(fixed.outcomes) == [(34,)]


COUNT = """
    r6 = r1
    r1 = map_value[runs]
    r2 = 1
    lock *(u32 *)(r1 +0) += r2
    r1 = r6
"""


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("tail", [TAIL, VARIABLE])
def test_tail_calls_to_empty_slots_count(before: int, tail: str) -> None:
    """The increment precedes the bypass, and the test for NULL: 34 are tried, then none."""
    empty = "r2 = map[progs]\nr3 = 1\ncall bpf_tail_call\nr1 = r6\n"

    async def main(kernel: Kernel) -> int:
        progs = await prog_array(kernel, 2)
        runs = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1)
        maps = {"progs": progs, "runs": runs}
        fd = await load(kernel, f"{COUNT}{empty * before}{tail}{RETURN}", maps=maps)
        assert await bpf_map_update_elem(kernel, progs, u32(0), u32(fd)) == 0
        assert await traced(kernel, fd, 0) == 99
        found = await bpf_map_lookup_elem(kernel, runs, u32(0))
        assert isinstance(found, bytes)
        return int.from_bytes(found, "little")

    # Each run uses up `before` + 1 of 33; the run whose last try is refused is the last one.
    assert run(main) == 33 // (before + 1) + 1


def test_every_run_has_33_tail_calls_of_its_own() -> None:
    async def main(kernel: Kernel) -> list[int]:
        progs = await prog_array(kernel)
        runs = await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1)
        fd = await load(kernel, f"{COUNT}{TAIL}{RETURN}", maps={"progs": progs, "runs": runs})
        assert await bpf_map_update_elem(kernel, progs, u32(0), u32(fd)) == 0
        totals = []
        for _ in range(3):
            await traced(kernel, fd, 0)
            found = await bpf_map_lookup_elem(kernel, runs, u32(0))
            assert isinstance(found, bytes)
            totals.append(int.from_bytes(found, "little"))
        return totals

    assert run(main) == [34, 68, 102]


# -- where they go -------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [TAIL, VARIABLE])
@pytest.mark.parametrize("version", ["5.5", "5.9", "5.10", "6.12"])
def test_a_tail_call_ends_the_program_or_fails(tail: str, version: str) -> None:
    before = "r6 = 6\nr7 = 7\n*(u64 *)(r10 -8) = 8\n"
    code = f"{before}{tail}r0 = *(u64 *)(r10 -8)\nr0 += r6\nr0 += r7\nexit"

    async def main(kernel: Kernel) -> None:
        progs = await prog_array(kernel)
        target = await load(kernel, TARGET)
        fd = await load(kernel, code, maps={"progs": progs})
        assert await traced(kernel, fd, 0) == 21
        assert await bpf_map_update_elem(kernel, progs, u32(0), u32(target)) == 0
        assert await traced(kernel, fd, 0) == 42
        assert await bpf_map_delete_elem(kernel, progs, u32(0)) == 0
        assert await traced(kernel, fd, 0) == 21

    assert not explore(main, version, runs=1).wrong


@pytest.mark.parametrize("index", [0, 1, 2, 7, 1 << 32, (1 << 32) + 1])
def test_a_variable_index_is_cut_to_32_bits_and_may_be_beyond_the_end(index: int) -> None:
    async def main(kernel: Kernel) -> int:
        progs = await prog_array(kernel, 2)
        target = await load(kernel, TARGET)
        fd = await load(kernel, f"{VARIABLE}{RETURN}", maps={"progs": progs})
        assert await bpf_map_update_elem(kernel, progs, u32(0), u32(target)) == 0
        return await traced(kernel, fd, index)

    assert run(main) == (42 if index & 0xFFFF_FFFF == 0 else 99)


@pytest.mark.parametrize("tail", [TAIL, VARIABLE])
def test_a_tail_call_from_a_function_returns_to_its_caller(tail: str) -> None:
    code = f"r6 = 50\ncall next\nr0 += r6\nexit\nnext: r6 = 1\n{tail}{RETURN}"

    async def main(kernel: Kernel) -> tuple[int, int]:
        progs = await prog_array(kernel)
        target = await load(kernel, TARGET)
        fd = await load(kernel, code, maps={"progs": progs})
        missed = await traced(kernel, fd, 0)
        assert await bpf_map_update_elem(kernel, progs, u32(0), u32(target)) == 0
        return missed, await traced(kernel, fd, 0)

    assert run(main) == (99 + 50, 42 + 50)


# -- refusals ------------------------------------------------------------------------------------


def refusal(code: str, version: str = "5.10") -> tuple[int, str]:
    """The error of a load, and the last line of the log."""

    async def main(kernel: Kernel) -> tuple[int, str]:
        log = bytearray()
        insns = assemble(code, {"progs": await prog_array(kernel)})
        prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT
        error = await bpf_load_program(kernel, prog_type, insns, log_buf=log)
        return min(0, error), (log.decode().strip().splitlines() or [""])[-1]

    result: tuple[int, str] = run(main, version)
    return result


SUBPROG = f"call next\nexit\nnext: {TAIL}{RETURN}"


@pytest.mark.parametrize(
    ("version", "code", "error"),
    [
        ("5.5", SUBPROG, -EINVAL),
        ("5.9", SUBPROG, -EINVAL),
        ("5.10", SUBPROG, 0),
        ("5.9", f"{TAIL}r0 = 0\nexit", 0),
        ("5.9", f"call next\nexit\nnext: {RETURN}", 0),
        ("5.9", f"r6 = r1\ncall next\nr1 = r6\n{TAIL}{RETURN}next: {RETURN}", -EINVAL),
    ],
)
def test_functions_and_tail_calls_mix_since_v5_10(version: str, code: str, error: int) -> None:
    assert refusal(code, version)[0] == error


@pytest.mark.parametrize(
    ("callers", "own", "error"),
    [
        (224, 0, 0),
        (255, 0, -EACCES),  # rounded up to 32 bytes
        (256, 0, -EACCES),
        (224, 256, 0),
        (224, 288, 0),
        (224, 320, -EACCES),
    ],
)
def test_the_callers_of_a_tail_call_may_have_256_bytes_of_stack(
    callers: int, own: int, error: int
) -> None:
    here = f"*(u8 *)(r10 -{callers}) = 0\n"
    there = f"*(u8 *)(r10 -{own}) = 0\n" if own else ""

    assert refusal(f"{here}call next\nexit\nnext: {there}{TAIL}{RETURN}")[0] == error


def test_the_stack_of_who_tail_calls_alone_is_not_limited_to_256_bytes() -> None:
    assert refusal(f"*(u64 *)(r10 -512) = 0\n{TAIL}{RETURN}")[0] == 0


@pytest.mark.parametrize(
    ("code", "func_info", "error"),
    [
        (SUBPROG, True, 0),
        (SUBPROG, False, -EINVAL),
        (f"{TAIL}{RETURN}", False, 0),
        (f"call next\nexit\nnext: {RETURN}", False, 0),
    ],
)
def test_functions_that_tail_call_need_func_info(code: str, *, func_info: bool, error: int) -> None:
    async def main(kernel: Kernel) -> int:
        insns = assemble(code, {"progs": await prog_array(kernel)})
        prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT
        attr = ProgLoadAttr(prog_type=prog_type, insns=insns, func_info=func_info)
        async with syscall(kernel):
            return min(0, await sys_bpf(kernel, 5, attr))

    assert run(main) == error


@pytest.mark.parametrize("version", ["5.10", "5.12", "6.12"])
@pytest.mark.parametrize("code", [f"{TAIL}{RETURN}", f"r6 = map[progs]\n{RETURN}"])
def test_programs_that_sleep_have_no_prog_array(version: str, code: str) -> None:
    async def main(kernel: Kernel, flags: int) -> int:
        error = await bpf_load_program(
            kernel,
            BPF_PROG_TYPE_TRACING,
            assemble(code, {"progs": await prog_array(kernel)}),
            flags=flags,
            expected_attach_type=BPF_MODIFY_RETURN,
            attach_to="bpf_modify_return_test",
        )
        return min(0, error)

    assert run(lambda kernel: main(kernel, BPF_F_SLEEPABLE), version) == -EINVAL
    assert run(lambda kernel: main(kernel, 0), version) == 0

"""Programs as targets of trampolines: who runs, what is refused, what is kept for how long."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY, BPF_PROG_LOAD
from kernel_model.bpf.hooks import bpf_raw_tracepoint_attach
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import (
    BPF_F_SLEEPABLE,
    BPF_LSM_MAC,
    BPF_MODIFY_RETURN,
    BPF_PROG_TYPE_EXT,
    BPF_PROG_TYPE_LSM,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
    BPF_TRACE_ITER,
    BPF_TRACE_RAW_TP,
    ProgLoadAttr,
)
from kernel_model.bpf.tracing_link import bpf_tracing_prog_attach
from kernel_model.bpf.trampoline import Trampolines
from kernel_model.bpf.trampoline_image import TrampolineImage
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import EBADF, EBUSY, EINVAL, ENOENT, ENOMEM
from kernel_model.linux.task import syscall
from kernel_model.uapi import bpf, bpf_create_map, bpf_map_update_elem, close, u32
from kernel_model.x86.text import NOP5, image_at
from sim.errors import MisuseError
from sim.strategies.random_walk import RandomWalk
from tests.kernel_model.bpf.running import explore, load, run, traced
from tests.kernel_model.bpf.tracing import (
    MAIN,
    NEXT,
    TARGET,
    TASKS,
    alone,
    entries,
    load_target,
    load_tracing,
    logged,
    new_log,
    prog_of,
    trampolines,
    watch,
)

NOTHING = "r0 = 0\nexit"
VERSIONS = ["5.6", "5.10", "5.12", "6.7", "6.12"]


async def attach(kernel: Kernel, kind: int, code: str, target: int, number: int, log: int) -> int:
    """The descriptor of the link of a program for a function of another one."""
    fd = await load_tracing(kernel, kind, code, target, number, log)
    link = await bpf_raw_tracepoint_attach(kernel, "", fd)
    await close(kernel, fd)
    return link


# -- what runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("number", "order"), [(MAIN, 2143), (NEXT, 2143)])
def test_programs_run_around_a_function_of_a_program(version: str, number: int, order: int) -> None:
    async def main(kernel: Kernel) -> tuple[int, int]:
        log, target = await new_log(kernel), await load_target(kernel)
        for digit, kind in enumerate([BPF_TRACE_FENTRY] * 2 + [BPF_TRACE_FEXIT] * 2, 1):
            assert await attach(kernel, kind, watch(digit), target, number, log) >= 0
        return await traced(kernel, target), await logged(kernel, log)

    assert alone(main, version) == (41, order)


@pytest.mark.parametrize(("number", "offset", "result"), [(MAIN, 8, 41), (NEXT, 40, 40)])
def test_fexit_gets_the_result_behind_the_arguments(number: int, offset: int, result: int) -> None:
    """One argument of the main function, the context; five of a function that nobody describes."""
    code = f"r2 = map_value[log]\nr3 = *(u64 *)(r1 +{offset})\n*(u64 *)(r2 +0) = r3\n{NOTHING}"

    async def main(kernel: Kernel) -> int:
        log, target = await new_log(kernel), await load_target(kernel)
        await attach(kernel, BPF_TRACE_FEXIT, code, target, number, log)
        await traced(kernel, target)
        return await logged(kernel, log)

    assert alone(main) == result


def test_a_main_function_that_btf_does_not_describe_is_traced_with_five_arguments() -> None:
    code = f"r2 = map_value[log]\nr3 = *(u64 *)(r1 +40)\n*(u64 *)(r2 +0) = r3\n{NOTHING}"

    async def main(kernel: Kernel) -> int:
        attr = ProgLoadAttr(
            prog_type=BPF_PROG_TYPE_RAW_TRACEPOINT,
            insns=assemble("r0 = 7\nexit"),
            unreliable=frozenset({0}),
        )
        log, target = await new_log(kernel), await bpf(kernel, BPF_PROG_LOAD, attr)
        await attach(kernel, BPF_TRACE_FEXIT, code, target, MAIN, log)
        await traced(kernel, target)
        return await logged(kernel, log)

    assert alone(main) == 7


def test_a_tail_call_enters_behind_the_entry_site() -> None:
    caller = "r2 = map[progs]\nr3 = 0\ncall bpf_tail_call\nr0 = 9\nexit"

    async def main(kernel: Kernel) -> tuple[int, int]:
        log, target = await new_log(kernel), await load_target(kernel)
        progs = await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)
        await attach(kernel, BPF_TRACE_FENTRY, watch(1), target, MAIN, log)
        fd = await load(kernel, caller, maps={"progs": progs})
        await bpf_map_update_elem(kernel, progs, u32(0), u32(target))
        return await traced(kernel, fd), await logged(kernel, log)

    assert alone(main) == (41, 0)


@pytest.mark.parametrize("version", ["5.10", "6.7", "6.12"])
def test_a_tracing_program_has_a_budget_of_tail_calls_of_its_own(version: str) -> None:
    again = "r2 = map[progs]\nr1 = r6\nr3 = 0\ncall bpf_tail_call\n"
    count = "r6 = r1\nr1 = map_value[log]\nr2 = 1\nlock *(u64 *)(r1 +0) += r2\n"

    async def main(kernel: Kernel) -> int:
        maps = {"log": await new_log(kernel)}
        maps["progs"] = await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)
        target = await load(kernel, f"{count}{again}{NOTHING}", maps=maps)
        await bpf_map_update_elem(kernel, maps["progs"], u32(0), u32(target))
        maps["progs"] = await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)
        fd = await load(
            kernel,
            f"{count}{again}{NOTHING}",
            BPF_PROG_TYPE_TRACING,
            maps,
            expected_attach_type=BPF_TRACE_FEXIT,
            attach_prog_fd=target,
            attach_btf_id=MAIN,
        )
        await bpf_map_update_elem(kernel, maps["progs"], u32(0), u32(fd))
        assert await bpf_raw_tracepoint_attach(kernel, "", fd) >= 0
        await traced(kernel, target)
        return await logged(kernel, maps["log"])

    assert alone(main, version) == 34 + 34


# -- the entry site, and what is kept --------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_entry_site_calls_the_image_while_programs_are_attached(version: str) -> None:
    async def main(kernel: Kernel) -> list[Any]:
        log, target = await new_log(kernel), await load_target(kernel)
        prog = await prog_of(kernel, target)
        links, seen = [], []
        for digit in (1, 2):
            links.append(await attach(kernel, BPF_TRACE_FENTRY, watch(digit), target, NEXT, log))
            site = entries(prog)[1]
            image = image_at(kernel, site.target)
            seen.append((site.op, isinstance(image, TrampolineImage), entries(prog)[0]))
        for link in links:
            await close(kernel, link)
            await traced(kernel, target)
        return [*seen, entries(prog), trampolines(kernel), await logged(kernel, log)]

    called = ("call", True, NOP5)
    assert alone(main, version) == [called, called, [NOP5, NOP5], 0, 2]


def test_each_function_of_each_program_has_a_trampoline_of_its_own() -> None:
    async def main(kernel: Kernel) -> list[int]:
        log, ids = await new_log(kernel), []
        for _ in range(2):
            target = await load_target(kernel)
            ids.append((await prog_of(kernel, target)).aux.id.value)
            for number in (MAIN, NEXT, NEXT):
                await attach(kernel, BPF_TRACE_FENTRY, watch(1), target, number, log)
        keys = [tuple(tr.key) for tr in kernel.subsystem(Trampolines).table.value]
        assert keys == [(id, number) for id in ids for number in (MAIN, NEXT)]
        return [tr.refcnt.value for tr in kernel.subsystem(Trampolines).table.value]

    assert alone(main) == [1, 2, 1, 2]


@pytest.mark.parametrize("attached", [False, True])
def test_the_target_is_kept_by_who_traces_it(*, attached: bool) -> None:
    async def main(kernel: Kernel) -> tuple[int, int, int]:
        target = await load_target(kernel)
        prog = await prog_of(kernel, target)
        fd = await load_tracing(kernel, BPF_TRACE_FENTRY, NOTHING, target, NEXT)
        if attached:
            link = await bpf_raw_tracepoint_attach(kernel, "", fd)
            await close(kernel, fd)
            fd = link
        counted = prog.aux.refcnt.value
        await close(kernel, target)
        alive = prog.aux.refcnt.value
        await close(kernel, fd)
        return counted, alive, trampolines(kernel)

    assert alone(main)[:2] == (2, 1)
    explored = explore(main, limit=1, config=TASKS)
    assert not explored.wrong  # nor is there a leak


def test_who_traces_a_program_that_is_freed_leaves_nothing_behind() -> None:
    async def main(kernel: Kernel) -> tuple[int, int]:
        target = await load_target(kernel)
        prog = await prog_of(kernel, target)
        link = await attach(kernel, BPF_TRACE_FEXIT, NOTHING, target, NEXT, -1)
        await close(kernel, target)
        before = prog.aux.id.value
        await close(kernel, link)
        return before > 0, prog.aux.id.value

    assert alone(main) == (True, 0)


# -- refusals --------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"attach_btf_id": 0}, "Tracing programs must provide btf_id"),
    ({"attach_btf_id": 3}, "attach_btf_id 3 is invalid"),
    ({"expected_attach_type": BPF_MODIFY_RETURN}, "can't modify return codes of BPF programs"),
    ({"expected_attach_type": BPF_MODIFY_RETURN, "flags": BPF_F_SLEEPABLE}, "is not sleepable"),
    ({"flags": BPF_F_SLEEPABLE}, "is not sleepable"),
    ({"expected_attach_type": BPF_TRACE_RAW_TP},
     "Only FENTRY/FEXIT progs are attachable to another BPF prog"),
    ({"expected_attach_type": 0}, ""),
    ({"prog_type": BPF_PROG_TYPE_LSM, "expected_attach_type": BPF_LSM_MAC}, ""),
    ({"prog_type": BPF_PROG_TYPE_RAW_TRACEPOINT, "expected_attach_type": 0}, ""),
    ({"prog_type": BPF_PROG_TYPE_RAW_TRACEPOINT, "attach_btf_id": 0,
      "expected_attach_type": 0}, ""),
]  # fmt: skip


async def refused(kernel: Kernel, target: int, **change: Any) -> tuple[int, str]:
    """The result of loading a program for the target, and the log."""
    log = bytearray()
    attributes = {
        "prog_type": BPF_PROG_TYPE_TRACING,
        "expected_attach_type": BPF_TRACE_FENTRY,
        "attach_prog_fd": target,
        "attach_btf_id": NEXT,
    } | change
    prog_type = attributes.pop("prog_type")
    insns = assemble(NOTHING)
    fd = await bpf_load_program(kernel, prog_type, insns, log_buf=log, **attributes)
    return fd, log.decode()


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=str)
def test_loading_is_refused_and_the_target_dropped(change: dict[str, Any], message: str) -> None:
    async def main(kernel: Kernel) -> tuple[int, str, int, int]:
        target = await load_target(kernel)
        prog = await prog_of(kernel, target)
        result, log = await refused(kernel, target, **change)
        return result, log, prog.aux.refcnt.value, trampolines(kernel)

    result, log, refcnt, left = alone(main)
    assert message in log
    assert (result, refcnt, left) == (-EINVAL, 1, 0)


def test_a_target_that_is_no_program() -> None:
    async def main(kernel: Kernel) -> tuple[int, int]:
        await new_log(kernel)
        log = await new_log(kernel)
        return (await refused(kernel, 99))[0], (await refused(kernel, log))[0]

    assert alone(main) == (-EBADF, -EINVAL)


def test_a_target_without_btf() -> None:
    async def main(kernel: Kernel) -> tuple[int, str]:
        insns = assemble(TARGET)
        attr = ProgLoadAttr(prog_type=BPF_PROG_TYPE_RAW_TRACEPOINT, insns=insns, func_info=False)
        await new_log(kernel)
        return await refused(kernel, await bpf(kernel, BPF_PROG_LOAD, attr))

    result, log = alone(main)
    assert result == -EINVAL
    assert "annotated with BTF" in log


@pytest.mark.parametrize("kind", [BPF_TRACE_FENTRY, BPF_TRACE_FEXIT])
def test_a_tracing_program_is_no_target_of_another_one(kind: int) -> None:
    async def main(kernel: Kernel) -> tuple[int, str]:
        target = await load_target(kernel)
        fd = await load_tracing(kernel, BPF_TRACE_FENTRY, NOTHING, target, MAIN)
        return await refused(kernel, fd, expected_attach_type=kind, attach_btf_id=MAIN)

    result, log = alone(main)
    assert result == -EINVAL
    assert "Cannot recursively attach" in log


@pytest.mark.parametrize(
    "mixed",
    [
        {"attach_btf_id": 1},
        {"attach_prog_fd": 3, "attach_to": "vfs_read"},
    ],
    ids=str,
)
def test_a_target_is_named_in_one_way(mixed: dict[str, Any]) -> None:
    async def main(kernel: Kernel) -> None:
        with pytest.raises(MisuseError, match="attach_"):
            await bpf_load_program(kernel, BPF_PROG_TYPE_EXT, assemble(NOTHING), **mixed)

    run(main)


def test_errors_of_attaching() -> None:
    async def main(kernel: Kernel) -> list[int]:
        target = await load_target(kernel)
        fd = await load_tracing(kernel, BPF_TRACE_FENTRY, NOTHING, target, NEXT)
        named = await bpf_raw_tracepoint_attach(kernel, "sys_enter", fd)
        assert await bpf_raw_tracepoint_attach(kernel, "", fd) >= 0
        twice = await bpf_raw_tracepoint_attach(kernel, "", fd)
        iterator = await load(
            kernel,
            NOTHING,
            BPF_PROG_TYPE_TRACING,
            expected_attach_type=BPF_TRACE_ITER,
            attach_to="bpf_iter_task",
        )
        iterated = await bpf_raw_tracepoint_attach(kernel, "", iterator)
        prog = await prog_of(kernel, fd)
        async with syscall(kernel):  # no command of bpf(2) gets there
            elsewhere = await bpf_tracing_prog_attach(kernel, prog, target, NEXT)
        return [named, twice, iterated, elsewhere]

    assert alone(main) == [-EINVAL, -ENOENT, -EINVAL, -EINVAL]


def test_an_entry_site_that_is_not_as_expected() -> None:
    """Nobody else patches it; if it were so, the program would not be attached."""

    async def main(kernel: Kernel) -> tuple[int, int]:
        target = await load_target(kernel)
        prog = await prog_of(kernel, target)
        image = prog.bpf_func.value
        assert image is not None
        image.sites[0].mem.value = NOP5._replace(op="jmp", target=image.addr)
        fd = await load_tracing(kernel, BPF_TRACE_FENTRY, NOTHING, target, MAIN)
        error = await bpf_raw_tracepoint_attach(kernel, "", fd)
        tr = kernel.subsystem(Trampolines).table.value[0]
        return error, len(tr.fentry.value)

    assert alone(main) == (-EBUSY, 0)


@pytest.mark.parametrize("version", ["5.10", "6.7"])
@pytest.mark.parametrize("from_the_load_on", [False, True])
def test_memory_is_short(version: str, *, from_the_load_on: bool) -> None:
    """Whatever fails, nothing is leaked, and no reference is dropped twice."""

    async def main(kernel: Kernel) -> int:
        target = await load_target(kernel)
        if from_the_load_on:
            vars(kernel)["faults"] = frozenset({"slab"})
        fd = await bpf_load_program(
            kernel,
            BPF_PROG_TYPE_TRACING,
            assemble(NOTHING),
            expected_attach_type=BPF_TRACE_FENTRY,
            attach_prog_fd=target,
            attach_btf_id=NEXT,
        )
        vars(kernel)["faults"] = frozenset({"slab"})
        return fd if fd < 0 else await bpf_raw_tracepoint_attach(kernel, "", fd)

    explored = explore(main, version, strategy=RandomWalk(0), limit=100, config=TASKS)

    assert not explored.wrong
    assert -ENOMEM in explored.returned
    assert max(explored.returned) >= 0 or from_the_load_on

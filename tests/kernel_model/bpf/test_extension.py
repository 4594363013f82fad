"""Extensions: they replace functions of programs, alone, one after another, and with tail calls."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_model.bpf.asm import assemble
from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY, BPF_PROG_LOAD
from kernel_model.bpf.hooks import bpf_raw_tracepoint_attach
from kernel_model.bpf.prog import bpf_load_program
from kernel_model.bpf.prog_attr import (
    BPF_F_SLEEPABLE,
    BPF_PROG_TYPE_EXT,
    BPF_PROG_TYPE_RAW_TRACEPOINT,
    BPF_PROG_TYPE_SCHED_CLS,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
    ProgLoadAttr,
)
from kernel_model.bpf.tracing_link import BPF_LINK_CREATE, LinkCreateAttr, bpf_link_create
from kernel_model.bpf.trampoline import Trampolines
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import EBADF, EBUSY, EINVAL, ENOENT, ENOMEM
from kernel_model.linux.file import FdTable
from kernel_model.uapi import bpf, bpf_create_map, bpf_map_update_elem, close, u32
from kernel_model.x86.text import NOP5, Text
from sim.strategies.random_walk import RandomWalk
from tests.kernel_model.bpf.running import explore, load, traced
from tests.kernel_model.bpf.tracing import (
    MAIN,
    NEXT,
    TARGET,
    TASKS,
    alone,
    entries,
    load_extension,
    load_target,
    load_tracing,
    logged,
    new_log,
    prog_of,
    trampolines,
    watch,
)

SIX = "r0 = 6\nexit"
TAIL_CALL = "r2 = map[progs]\nr3 = 0\ncall bpf_tail_call\nr0 = 9\nexit"


async def extend(kernel: Kernel, code: str, target: int, number: int) -> int:
    """The descriptor of the link of an extension, which has nobody else."""
    fd = await load_extension(kernel, code, target, number)
    assert fd >= 0
    link = await bpf_raw_tracepoint_attach(kernel, "", fd)
    await close(kernel, fd)
    return link


async def watched(kernel: Kernel, target: int, number: int, kind: int = BPF_TRACE_FENTRY) -> int:
    """The descriptor of the link of a tracing program, or -errno."""
    fd = await load_tracing(kernel, kind, "r0 = 0\nexit", target, number)
    link = await bpf_raw_tracepoint_attach(kernel, "", fd)
    await close(kernel, fd)
    return link


# -- what runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["5.6", "5.10", "5.12", "6.12"])
@pytest.mark.parametrize(("number", "result"), [(MAIN, 6), (NEXT, 7)])
def test_a_function_is_replaced_for_as_long_as_the_link_is_open(
    version: str, number: int, result: int
) -> None:
    async def main(kernel: Kernel) -> list[int]:
        target = await load_target(kernel)
        link = await extend(kernel, SIX, target, number)
        extended = await traced(kernel, target)
        await close(kernel, link)
        return [extended, await traced(kernel, target), trampolines(kernel)]

    assert alone(main, version) == [result, 41, 0]


def test_the_entry_site_jumps_to_the_extension() -> None:
    async def main(kernel: Kernel) -> None:
        target = await load_target(kernel)
        fd = await load_extension(kernel, SIX, target, NEXT)
        prog, extension = await prog_of(kernel, target), await prog_of(kernel, fd)
        image = extension.bpf_func.value
        assert image is not None
        link = await bpf_raw_tracepoint_attach(kernel, "", fd)
        assert entries(prog) == [NOP5, Text("jmp", image.addr)]
        [tr] = kernel.subsystem(Trampolines).table.value
        assert tr.extension_prog.value is extension
        await close(kernel, link)
        assert entries(prog) == [NOP5, NOP5]

    alone(main)


def test_an_extension_has_the_context_of_its_target() -> None:
    code = "r2 = *(u64 *)(r1 +0)\nr0 = r2\nr0 += 1\nexit"

    async def main(kernel: Kernel) -> int:
        target = await load_target(kernel)
        await extend(kernel, code, target, MAIN)
        return await traced(kernel, target, 70)

    assert alone(main) == 71


def test_an_extension_has_the_rules_of_its_target() -> None:
    """Classifiers may write to their context, programs of raw tracepoints may not."""
    code = "r2 = 1\n*(u32 *)(r1 +8) = r2\nr0 = 0\nexit"

    async def main(kernel: Kernel) -> list[bool]:
        results = []
        for prog_type in (BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_RAW_TRACEPOINT):
            await new_log(kernel)
            target = await load(kernel, "r0 = 0\nexit", prog_type)
            results.append(await load_extension(kernel, code, target, MAIN) >= 0)
        return results

    assert alone(main) == [True, False]


def test_an_extension_can_be_traced() -> None:
    async def main(kernel: Kernel) -> tuple[int, int]:
        log, target = await new_log(kernel), await load_target(kernel)
        fd = await load_extension(kernel, SIX, target, NEXT)
        assert await bpf_raw_tracepoint_attach(kernel, "", fd) >= 0
        for digit, kind in enumerate((BPF_TRACE_FENTRY, BPF_TRACE_FEXIT), 1):
            tracing = await load_tracing(kernel, kind, watch(digit), fd, MAIN, log)
            assert await bpf_raw_tracepoint_attach(kernel, "", tracing) >= 0
        return await traced(kernel, target), await logged(kernel, log)

    assert alone(main) == (7, 12)


# -- one at a time -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BPF_TRACE_FENTRY, BPF_TRACE_FEXIT])
def test_a_function_that_is_traced_is_not_replaced(kind: int) -> None:
    async def main(kernel: Kernel) -> list[int]:
        target = await load_target(kernel)
        link = await watched(kernel, target, NEXT, kind)
        open_fds = kernel.subsystem(FdTable).open_fds.value
        busy = await extend(kernel, SIX, target, NEXT)
        assert kernel.subsystem(FdTable).open_fds.value == open_fds
        other = await extend(kernel, SIX, target, MAIN)
        await close(kernel, link)
        return [busy, min(other, 0), min(await extend(kernel, SIX, target, NEXT), 0)]

    assert alone(main) == [-EBUSY, 0, 0]


def test_a_function_that_is_replaced_is_neither_traced_nor_replaced_again() -> None:
    async def main(kernel: Kernel) -> list[int]:
        target = await load_target(kernel)
        link = await extend(kernel, SIX, target, NEXT)
        results = [await watched(kernel, target, NEXT), await extend(kernel, SIX, target, NEXT)]
        await close(kernel, link)
        return [*results, min(await watched(kernel, target, NEXT), 0)]

    assert alone(main) == [-EBUSY, -EBUSY, 0]


def test_an_entry_site_that_cannot_be_patched_keeps_its_function_busy() -> None:
    """kernel-facts 3.4: on failure `extension_prog` stays set."""

    async def main(kernel: Kernel) -> list[int]:
        target = await load_target(kernel)
        prog = await prog_of(kernel, target)
        image = prog.aux.func.value[1].bpf_func.value
        assert image is not None
        kept = await load_extension(kernel, SIX, target, NEXT)  # so that the trampoline is
        image.sites[0].mem.value = Text("call", image.addr)
        results = [await extend(kernel, SIX, target, NEXT)]
        image.sites[0].mem.value = NOP5
        return [*results, await bpf_raw_tracepoint_attach(kernel, "", kept)]

    assert alone(main) == [-EBUSY, -EBUSY]


# -- refusals of loading -------------------------------------------------------------------------


async def refused(kernel: Kernel, target: int, **attributes: Any) -> tuple[int, str]:
    log = bytearray()
    given = {"attach_prog_fd": target, "attach_btf_id": MAIN} | attributes
    insns = assemble(SIX)
    fd = await bpf_load_program(kernel, BPF_PROG_TYPE_EXT, insns, log_buf=log, **given)
    return fd, log.decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expected_attach_type": BPF_TRACE_FENTRY}, ""),
        ({"attach_btf_id": 0}, "Tracing programs must provide btf_id"),
        ({"attach_btf_id": 3}, "attach_btf_id 3 is invalid"),
        ({"flags": BPF_F_SLEEPABLE}, "Only fentry/fexit/fmod_ret and lsm programs"),
        ({"attach_prog_fd": 0, "attach_btf_id": 0, "attach_to": "vfs_read"},
         "Cannot replace kernel functions"),
    ],
    ids=str,
)  # fmt: skip
def test_an_extension_is_refused(change: dict[str, Any], message: str) -> None:
    async def main(kernel: Kernel) -> tuple[int, str, int]:
        target = await load_target(kernel)
        result, log = await refused(kernel, target, **change)
        return result, log, (await prog_of(kernel, target)).aux.refcnt.value

    result, log, refcnt = alone(main)
    assert message in log
    assert (result, refcnt) == (-EINVAL, 1)


@pytest.mark.parametrize("kind", [BPF_TRACE_FENTRY, BPF_TRACE_FEXIT])
def test_tracing_programs_are_not_extended(kind: int) -> None:
    async def main(kernel: Kernel) -> tuple[int, str]:
        target = await load_target(kernel)
        fd = await load_tracing(kernel, kind, "r0 = 0\nexit", target, MAIN)
        return await refused(kernel, fd)

    assert alone(main)[0] == -EINVAL
    assert "Cannot extend fentry/fexit" in alone(main)[1]


def test_an_extension_is_not_extended() -> None:
    async def main(kernel: Kernel) -> tuple[int, str]:
        target = await load_target(kernel)
        return await refused(kernel, await load_extension(kernel, SIX, target, MAIN))

    assert alone(main)[0] == -EINVAL
    assert "Cannot recursively attach" in alone(main)[1]


def test_a_function_that_btf_does_not_describe_is_not_replaced() -> None:
    async def main(kernel: Kernel) -> list[Any]:
        attr = ProgLoadAttr(
            prog_type=BPF_PROG_TYPE_RAW_TRACEPOINT,
            insns=assemble(TARGET),
            unreliable=frozenset({1}),
        )
        await new_log(kernel)
        target = await bpf(kernel, BPF_PROG_LOAD, attr)
        fd, log = await refused(kernel, target, attach_btf_id=NEXT)
        return [fd, log, (await refused(kernel, target))[0] >= 0]

    fd, log, main_function = alone(main)
    assert "Cannot replace static functions" in log
    assert (fd, main_function) == (-EINVAL, True)


# -- other targets than at load ------------------------------------------------------------------


def test_an_extension_is_attached_to_several_programs() -> None:
    async def main(kernel: Kernel) -> list[int]:
        first, second = [await load_target(kernel) for _ in range(2)]
        progs = [await prog_of(kernel, fd) for fd in (first, second)]
        fd = await load_extension(kernel, SIX, first, NEXT)
        links = [await bpf_link_create(kernel, fd)]
        assert await bpf_link_create(kernel, fd) == -ENOENT  # the saved target is the link's
        links.append(await bpf_link_create(kernel, fd, second, NEXT))
        results = [await traced(kernel, first), await traced(kernel, second)]
        counts = [prog.aux.refcnt.value for prog in progs]
        for link in links:
            await close(kernel, link)
        results += [await traced(kernel, first), await traced(kernel, second)]
        return [*results, *counts, *[prog.aux.refcnt.value for prog in progs]]

    assert alone(main) == [7, 7, 41, 41, 2, 2, 1, 1]


@pytest.mark.parametrize("same", [False, True])
def test_the_first_attachment_may_go_elsewhere(*, same: bool) -> None:
    """The target of loading is dropped, with its trampoline; named again, it is used as it is."""

    async def main(kernel: Kernel) -> list[Any]:
        first, second = [await load_target(kernel) for _ in range(2)]
        fd = await load_extension(kernel, SIX, first, NEXT)
        link = await bpf_link_create(kernel, fd, first if same else second, NEXT)
        prog = await prog_of(kernel, first)
        seen = [prog.aux.refcnt.value, trampolines(kernel), await traced(kernel, second)]
        await close(kernel, link)
        return [*seen, prog.aux.refcnt.value, trampolines(kernel)]

    assert alone(main) == ([2, 1, 41, 1, 0] if same else [1, 1, 7, 1, 0])


def test_errors_of_attaching_elsewhere() -> None:
    async def main(kernel: Kernel) -> list[int]:
        target = await load_target(kernel)
        other = await load(kernel, SIX, BPF_PROG_TYPE_SCHED_CLS)
        fd = await load_extension(kernel, SIX, target, NEXT)
        watching = await load_tracing(kernel, BPF_TRACE_FENTRY, "r0 = 0\nexit", target, MAIN)
        typed = LinkCreateAttr(prog_fd=fd, attach_type=BPF_TRACE_FENTRY)
        traces = LinkCreateAttr(prog_fd=watching, attach_type=BPF_TRACE_FENTRY)
        unused = LinkCreateAttr(prog_fd=fd, unused_tail=True)
        results = [
            await bpf_link_create(kernel, fd, target, 0),
            await bpf_link_create(kernel, fd, 0, NEXT),
            await bpf_link_create(kernel, fd, other, MAIN),
            await bpf_link_create(kernel, fd, target, 3),
            await bpf_link_create(kernel, fd, fd, MAIN),
            await bpf_link_create(kernel, fd, 99, MAIN),
            await bpf_link_create(kernel, 99),
            await bpf_link_create(kernel, watching, target, MAIN),
            await bpf(kernel, BPF_LINK_CREATE, typed),
            await bpf(kernel, BPF_LINK_CREATE, traces),
            await bpf(kernel, BPF_LINK_CREATE, unused),
            await bpf_raw_tracepoint_attach(kernel, "sys_enter", fd),
        ]
        # None of them has taken anything away.
        assert await bpf_raw_tracepoint_attach(kernel, "", fd) >= 0
        counts = [(await prog_of(kernel, ufd)).aux.refcnt.value for ufd in (target, other, fd)]
        return [*results, *counts]

    expected = [-EINVAL] * 5 + [-EBADF] * 2 + [-EINVAL] * 5
    assert alone(main) == [*expected, 3, 1, 2]


@pytest.mark.parametrize("again", [False, True])
def test_memory_is_short(*, again: bool) -> None:
    """Attaching leaves one trampoline: the link's, or if it fails that of loading."""

    async def main(kernel: Kernel) -> tuple[int, int]:
        first, second = [await load_target(kernel) for _ in range(2)]
        fd = await load_extension(kernel, SIX, first, NEXT)
        vars(kernel)["faults"] = frozenset({"slab"})
        link = await bpf_link_create(kernel, fd, *([second, NEXT] if again else []))
        return min(link, 0), trampolines(kernel)

    explored = explore(main, strategy=RandomWalk(0), limit=60, config=TASKS)

    assert not explored.wrong
    assert set(explored.returned) == {(-ENOMEM, 1), (0, 1)}


# -- tail calls ----------------------------------------------------------------------------------


def test_an_extension_tail_calls_extensions_only() -> None:
    """v5.10 compares its own type, not that of its target."""

    async def main(kernel: Kernel) -> list[int]:
        target = await load_target(kernel)
        progs = await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)
        maps = {"progs": progs}
        fd = await load_extension(kernel, TAIL_CALL, target, NEXT, maps)
        assert await bpf_raw_tracepoint_attach(kernel, "", fd) >= 0
        missed = await traced(kernel, target)
        own_type = await bpf_map_update_elem(kernel, progs, u32(0), u32(target))
        extension = await load_extension(kernel, SIX, target, MAIN)
        installed = await bpf_map_update_elem(kernel, progs, u32(0), u32(extension))
        return [missed, own_type, installed, await traced(kernel, target)]

    assert alone(main) == [10, -EINVAL, 0, 7]


def test_an_array_of_its_targets_type_is_refused() -> None:
    async def main(kernel: Kernel) -> int:
        target = await load_target(kernel)
        progs = await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)
        await bpf_map_update_elem(kernel, progs, u32(0), u32(target))
        return await load_extension(kernel, TAIL_CALL, target, NEXT, {"progs": progs})

    assert alone(main) == -EINVAL


def test_a_tracing_programs_type_is_no_extensions() -> None:
    async def main(kernel: Kernel) -> int:
        target = await load_target(kernel)
        return await bpf_load_program(
            kernel,
            BPF_PROG_TYPE_TRACING,
            assemble(SIX),
            attach_prog_fd=target,
            attach_btf_id=MAIN,
        )

    assert alone(main) == -EINVAL

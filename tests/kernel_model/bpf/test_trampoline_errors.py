"""Errors of trampolines and of ftrace's direct calls; hooks of security modules."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_model.boot import boot
from kernel_model.bpf.ftrace import (
    Ftrace,
    call_function,
    modify_ftrace_direct,
    register_ftrace_direct,
    traced_function,
    unregister_ftrace_direct,
)
from kernel_model.bpf.hooks import bpf_raw_tracepoint_attach
from kernel_model.bpf.prog_attr import (
    BPF_LSM_MAC,
    BPF_MODIFY_RETURN,
    BPF_PROG_TYPE_LSM,
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
)
from kernel_model.bpf.trampoline import BPF_MAX_TRAMP_PROGS, Trampolines
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import E2BIG, EBUSY, EINVAL, ENODEV, ENOTSUPP
from kernel_model.linux.task import syscall
from kernel_model.uapi import close
from kernel_model.x86.text import NOP5, Text
from sim import ops
from sim.events import Event
from sim.execution import Execution
from sim.hosts import direct
from sim.memory import Memory
from sim.strategies.dfs import Dfs
from tests.kernel_model.bpf.running import load
from tests.kernel_model.bpf.tracing import TASKS, alone, logged, new_log, watch

FUNCTION = "__x64_sys_getpgid"
NOTHING = "r0 = 0\nexit"


async def body(kernel: Kernel, pid: int) -> int:
    del kernel
    return pid + 1


async def attach(
    kernel: Kernel,
    kind: int,
    code: str = NOTHING,
    function: str = FUNCTION,
    prog_type: int = BPF_PROG_TYPE_TRACING,
    log: int = -1,
) -> int:
    """The descriptor of a link, or -errno; the program has nobody else."""
    maps = {"log": log}
    fd = await load(kernel, code, prog_type, maps, expected_attach_type=kind, attach_to=function)
    link = await bpf_raw_tracepoint_attach(kernel, "", fd)
    await close(kernel, fd)
    return link


# -- limits --------------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_model.linux.file.NR_OPEN", 64)


@pytest.mark.usefixtures("many_descriptors")
def test_the_41st_program_is_refused() -> None:
    """Programs before and behind the function count together."""

    async def main(kernel: Kernel) -> list[int]:
        traced_function(kernel, FUNCTION, body)
        kinds = [BPF_TRACE_FENTRY, BPF_TRACE_FEXIT] * (BPF_MAX_TRAMP_PROGS // 2)
        links = [await attach(kernel, kind) for kind in kinds]
        assert min(links) >= 0
        results = [await attach(kernel, kind) for kind in (BPF_TRACE_FENTRY, BPF_TRACE_FEXIT)]
        await close(kernel, links[0])
        results.append(min(await attach(kernel, BPF_TRACE_FEXIT), 0))
        return [*results, await attach(kernel, BPF_MODIFY_RETURN)]

    assert alone(main) == [-E2BIG, -E2BIG, 0, -E2BIG]


@pytest.mark.usefixtures("many_descriptors")
def test_programs_that_modify_the_result_do_not_count() -> None:
    async def main(kernel: Kernel) -> list[int]:
        traced_function(kernel, FUNCTION, body)
        for _ in range(BPF_MAX_TRAMP_PROGS):
            assert await attach(kernel, BPF_MODIFY_RETURN) >= 0
        return [min(await attach(kernel, kind), 0) for kind in (BPF_MODIFY_RETURN, BPF_TRACE_FEXIT)]

    assert alone(main) == [0, 0]


async def six(kernel: Kernel, a: int, b: int, c: int, d: int, e: int, f: int) -> int:
    del kernel
    return a + b + c + d + e + f


async def seven(kernel: Kernel, a: int, b: int, c: int, d: int, e: int, f: int, g: int) -> int:
    return await six(kernel, a, b, c, d, e, f) + g


@pytest.mark.parametrize("version", ["5.10", "5.12"])
def test_functions_with_more_than_six_arguments_have_no_trampoline(version: str) -> None:
    code = "r2 = map_value[log]\nr3 = *(u64 *)(r1 +40)\n*(u64 *)(r2 +0) = r3\nr0 = 0\nexit"

    async def main(kernel: Kernel) -> list[int]:
        function, log = traced_function(kernel, "__x64_sys_six", six), await new_log(kernel)
        other = traced_function(kernel, "__x64_sys_seven", seven)
        results = [
            min(await attach(kernel, BPF_TRACE_FENTRY, code, "__x64_sys_six", log=log), 0),
            await attach(kernel, BPF_TRACE_FENTRY, NOTHING, "__x64_sys_seven"),
        ]
        async with syscall(kernel):
            results.append(await call_function(kernel, function, 1, 2, 3, 4, 5, 6))
            results.append(await call_function(kernel, other, 1, 2, 3, 4, 5, 6, 7))
        return [*results, await logged(kernel, log)]

    assert alone(main, version) == [0, -ENOTSUPP, 21, 28, 6]


# -- ftrace --------------------------------------------------------------------------------------


def test_errors_of_direct_calls() -> None:
    async def main(kernel: Kernel) -> list[Any]:
        function = traced_function(kernel, FUNCTION, body)
        site, one, two = function.sites[0].mem, function.addr + 16, function.addr + 32
        async with syscall(kernel):
            results: list[Any] = [
                await modify_ftrace_direct(kernel, function, one, two),
                await unregister_ftrace_direct(kernel, function, one),
                site.value,
                await register_ftrace_direct(kernel, function, one),
                await register_ftrace_direct(kernel, function, two),
                await modify_ftrace_direct(kernel, function, two, one),
                await unregister_ftrace_direct(kernel, function, two),
                site.value == Text("call", one),
                await unregister_ftrace_direct(kernel, function, one),
                site.value,
            ]
        return [*results, kernel.subsystem(Ftrace).direct_functions.value]

    busy = [0, -EBUSY, -EINVAL, -ENODEV, True]
    assert alone(main) == [-ENODEV, -ENODEV, NOP5, *busy, 0, NOP5, ()]


@pytest.mark.parametrize("registered", [False, True])
def test_a_trampoline_whose_function_somebody_else_has_is_not_attached(*, registered: bool) -> None:
    async def main(kernel: Kernel) -> tuple[int, int, int]:
        function = traced_function(kernel, FUNCTION, body)
        if registered:
            async with syscall(kernel):
                await register_ftrace_direct(kernel, function, function.addr + 16)
        fd = await load(
            kernel,
            NOTHING,
            BPF_PROG_TYPE_TRACING,
            expected_attach_type=BPF_TRACE_FENTRY,
            attach_to=FUNCTION,
        )
        error = await bpf_raw_tracepoint_attach(kernel, "", fd)
        [tr] = kernel.subsystem(Trampolines).table.value
        return min(error, 0), len(tr.fentry.value), tr.selector.value

    assert alone(main) == ((-EBUSY, 0, 0) if registered else (0, 1, 1))


def unregistered_after_a_change(version: str) -> list[str]:
    """What is noted and waited for by unregistering a function whose address has changed."""
    memory = Memory()
    kernel = boot(memory, version, config=TASKS)
    events: list[Event] = []

    async def main() -> None:
        function = traced_function(kernel, FUNCTION, body)
        async with syscall(kernel):
            await register_ftrace_direct(kernel, function, function.addr + 16)
            await modify_ftrace_direct(kernel, function, function.addr + 16, function.addr + 32)
            assert await unregister_ftrace_direct(kernel, function, function.addr + 32) == 0

    direct.run(Execution(main, memory, Dfs(), observer=events.append))
    return [e.op.name for e in events if e.op.name == "WARN" or e.op.kind == ops.GP_START]


def test_v5_10_forgets_what_it_has_changed() -> None:
    """kernel-facts 3.3: it warns, and does not wait; 8a141dd7f706 lets it do neither."""
    assert unregistered_after_a_change("5.10") == ["WARN"]
    assert unregistered_after_a_change("5.14") == ["synchronize_rcu_tasks"]


# -- hooks of security modules -------------------------------------------------------------------


async def lsm_default(kernel: Kernel, first: int) -> int:
    """What a hook does that nobody has attached anything to."""
    del kernel, first
    return 0


@pytest.mark.parametrize("version", ["5.10", "5.12", "6.12"])
@pytest.mark.parametrize("result", [0, -1])
def test_a_program_decides_what_a_hook_returns(version: str, result: int) -> None:
    code = watch(1, result)

    async def main(kernel: Kernel) -> tuple[int, int, int]:
        hook = traced_function(kernel, "bpf_lsm_file_open", lsm_default)
        log = await new_log(kernel)
        link = await attach(kernel, BPF_LSM_MAC, code, hook.name, BPF_PROG_TYPE_LSM, log)
        async with syscall(kernel):
            decided = await call_function(kernel, hook, 5)
        await close(kernel, link)
        async with syscall(kernel):
            default = await call_function(kernel, hook, 5)
        return decided, default, await logged(kernel, log)

    assert alone(main, version) == (result & 0xFFFF_FFFF, 0, 1)


def test_the_first_program_that_refuses_ends_the_hook() -> None:
    async def main(kernel: Kernel) -> tuple[int, int]:
        hook = traced_function(kernel, "bpf_lsm_file_open", lsm_default)
        log = await new_log(kernel)
        for number, result in ((1, 0), (2, -1), (3, 0)):
            code = watch(number, result)
            await attach(kernel, BPF_LSM_MAC, code, hook.name, BPF_PROG_TYPE_LSM, log)
        async with syscall(kernel):
            decided = await call_function(kernel, hook, 5)
        return decided, await logged(kernel, log)

    assert alone(main) == (0xFFFF_FFFF, 32)


def test_behind_a_hook_that_returns_nothing_a_program_decides_nothing() -> None:
    async def main(kernel: Kernel) -> tuple[int, int, tuple[int, int]]:
        hook = traced_function(kernel, "bpf_lsm_bprm_committed_creds", lsm_default)
        log = await new_log(kernel)
        code = watch(1, -1)
        await attach(kernel, BPF_LSM_MAC, code, hook.name, BPF_PROG_TYPE_LSM, log)
        async with syscall(kernel):
            decided = await call_function(kernel, hook, 5)
        [tr] = kernel.subsystem(Trampolines).table.value
        kinds = (len(tr.fexit.value), len(tr.modify_return.value))
        return decided, await logged(kernel, log), kinds

    assert alone(main) == (0, 1, (1, 0))


def test_a_program_of_a_security_module_is_attached_as_one() -> None:
    """v5.10 loads it with another attach type, and does not attach it."""

    async def main(kernel: Kernel) -> int:
        hook = traced_function(kernel, "bpf_lsm_file_open", lsm_default)
        return await attach(kernel, BPF_TRACE_FENTRY, NOTHING, hook.name, BPF_PROG_TYPE_LSM)

    assert alone(main) == -EINVAL

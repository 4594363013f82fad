"""Several tasks: callers of a program that is traced or extended meanwhile, and who attaches."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_model.bpf.hooks import bpf_raw_tracepoint_attach
from kernel_model.bpf.prog_attr import BPF_TRACE_FENTRY, BPF_TRACE_FEXIT
from kernel_model.bpf.tracing_link import bpf_link_create
from kernel_model.kernel import Kernel
from kernel_model.linux.errno import EBUSY, ENOENT
from kernel_model.uapi import close
from sim.choosing import Strategy
from sim.macros import outcome
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from tests.kernel_model.bpf.maps import explore, together
from tests.kernel_model.bpf.running import traced
from tests.kernel_model.bpf.tracing import (
    NEXT,
    TASKS,
    load_extension,
    load_target,
    load_tracing,
    logged,
    new_log,
    trampolines,
    watch,
)

NOTHING = "r0 = 0\nexit"
SIX = "r0 = 6\nexit"


def search(main: Any, strategy: Strategy, version: str = "5.10", runs: int = 150) -> set[Any]:
    """What tasks said, in so many executions; nothing may go wrong in them."""
    explored = explore(main, version, strategy=strategy, runs=runs, config=TASKS)
    assert explored.wrong == set()

    return explored.outcomes - {None}


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
def test_callers_see_the_function_or_its_extension(strategy: type[RandomWalk | Pct]) -> None:
    async def main(kernel: Kernel) -> None:
        target = await load_target(kernel)
        fd = await load_extension(kernel, SIX, target, NEXT)
        link = await bpf_link_create(kernel, fd)

        async def call() -> None:
            await outcome(tuple([await traced(kernel, target) for _ in range(2)]))

        async def change() -> None:
            await close(kernel, link)
            await close(kernel, fd)
            again = await load_extension(kernel, SIX, target, NEXT)
            await bpf_raw_tracepoint_attach(kernel, "", again)

        await together(kernel, call, call, change)

    seen = search(main, strategy(0))
    assert seen <= {(a, b) for a in (7, 41) for b in (7, 41)}
    assert {(7, 7), (7, 41), (41, 41)} <= seen


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
@pytest.mark.parametrize("version", ["5.10", "5.12", "6.12"])
@pytest.mark.parametrize("kind", [BPF_TRACE_FENTRY, BPF_TRACE_FEXIT])
def test_a_target_is_traced_and_let_go_under_its_callers(
    kind: int, version: str, strategy: type[RandomWalk | Pct]
) -> None:
    async def main(kernel: Kernel) -> None:
        target = await load_target(kernel)
        fds = []
        for _ in range(2):
            fds.append(await load_tracing(kernel, kind, NOTHING, target, NEXT))
            fds.append(await bpf_raw_tracepoint_attach(kernel, "", fds[-1]))

        async def call() -> None:
            await outcome(await traced(kernel, target))

        async def change() -> None:
            for fd in fds:
                await close(kernel, fd)

        await together(kernel, call, call, change)
        await close(kernel, target)

    assert search(main, strategy(0), version, runs=60) == {41}


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
def test_of_two_who_attach_one_program_one_is_late(strategy: type[RandomWalk | Pct]) -> None:
    async def main(kernel: Kernel) -> tuple[int, ...]:
        target = await load_target(kernel)
        fd = await load_tracing(kernel, BPF_TRACE_FENTRY, NOTHING, target, NEXT)
        results = []

        async def attach() -> None:
            results.append(min(await bpf_raw_tracepoint_attach(kernel, "", fd), 0))

        await together(kernel, attach, attach)
        return tuple(sorted(results))

    assert search(main, strategy(0), runs=60) == {(-ENOENT, 0)}


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
def test_of_who_traces_and_who_replaces_one_is_late(strategy: type[RandomWalk | Pct]) -> None:
    async def main(kernel: Kernel) -> tuple[int, int]:
        target = await load_target(kernel)
        fds = [
            await load_tracing(kernel, BPF_TRACE_FENTRY, NOTHING, target, NEXT),
            await load_extension(kernel, SIX, target, NEXT),
        ]
        results = [1, 1]

        def attach(which: int) -> Any:
            async def body() -> None:
                link = await bpf_raw_tracepoint_attach(kernel, "", fds[which])
                results[which] = min(link, 0)

            return body

        await together(kernel, attach(0), attach(1))
        assert trampolines(kernel) == 1
        return results[0], results[1]

    assert search(main, strategy(0), runs=60) == {(0, -EBUSY), (-EBUSY, 0)}


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
def test_two_who_trace_one_function_both_do(strategy: type[RandomWalk | Pct]) -> None:
    async def main(kernel: Kernel) -> int:
        log, target = await new_log(kernel), await load_target(kernel)

        def attach(number: int) -> Any:
            async def body() -> None:
                code = watch(number)
                fd = await load_tracing(kernel, BPF_TRACE_FENTRY, code, target, NEXT, log)
                assert await bpf_raw_tracepoint_attach(kernel, "", fd) >= 0

            return body

        await together(kernel, attach(1), attach(2))
        await traced(kernel, target)
        return await logged(kernel, log)

    assert search(main, strategy(0), runs=60) == {12, 21}

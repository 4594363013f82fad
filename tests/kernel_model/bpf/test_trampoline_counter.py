"""A tail-calling function that stays traced, looked at by no detector: does its loop end?"""

from __future__ import annotations

import pytest

from kernel_model.boot import boot
from kernel_model.bpf.attr import BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.hooks import bpf_raw_tracepoint_attach
from kernel_model.bpf.prog_attr import BPF_TRACE_FENTRY, BPF_TRACE_FEXIT
from kernel_model.fixes import fixes_of
from kernel_model.kernel import Kernel
from kernel_model.uapi import bpf_create_map, bpf_map_update_elem, u32
from sim.events import Event
from sim.execution import CUT, DONE, Execution
from sim.hosts import direct
from sim.memory import Memory
from sim.strategies.dfs import Dfs
from tests.kernel_model.bpf.running import load, traced
from tests.kernel_model.bpf.tracing import NEXT, TASKS, load_tracing
from workloads.tailcall_counter import CODE

FIX = ("2b5dcb31a19a",)
MAX_STEPS = 1000  # more than a run takes that ends


async def run_traced(kernel: Kernel, kind: int) -> None:
    """Run a program whose tail-calling function is traced."""
    maps = {
        "progs": await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1),
        "runs": await bpf_create_map(kernel, BPF_MAP_TYPE_ARRAY, 4, 4, 1),
    }
    fd = await load(kernel, CODE["subprog"], maps=maps)
    await bpf_map_update_elem(kernel, maps["progs"], u32(0), u32(fd))
    tracing = await load_tracing(kernel, kind, "r0 = 0\nexit", fd, NEXT)
    assert await bpf_raw_tracepoint_attach(kernel, "", tracing) >= 0
    await traced(kernel, fd)


def count(version: str, kind: int, *, add: tuple[str, ...] = ()) -> tuple[int, str]:
    """How often the program runs, and how the execution ends."""
    memory = Memory()
    kernel = boot(memory, version, fixes_of(version, add), config=TASKS)
    events: list[Event] = []

    async def main() -> None:
        await run_traced(kernel, kind)

    execution = Execution(main, memory, Dfs(), observer=events.append, max_steps=MAX_STEPS)
    direct.run(execution)
    return sum(event.op.name == "xadd" for event in events), execution.state


@pytest.mark.parametrize(
    ("version", "kind"),
    [("5.10", BPF_TRACE_FENTRY), ("5.12", BPF_TRACE_FENTRY), ("6.1", BPF_TRACE_FEXIT)],
)
def test_it_goes_on_for_as_long_as_somebody_looks(version: str, kind: int) -> None:
    runs, state = count(version, kind)

    assert state == CUT
    assert runs > 34 + 10


@pytest.mark.parametrize("kind", [BPF_TRACE_FENTRY, BPF_TRACE_FEXIT])
@pytest.mark.parametrize(("version", "add"), [("5.10", FIX), ("6.7", ()), ("6.12", ())])
def test_it_ends_at_the_limit_where_the_count_is_kept(
    version: str, add: tuple[str, ...], kind: int
) -> None:
    assert count(version, kind, add=add) == (34, DONE)


def test_images_that_call_nothing_before_the_function_keep_it() -> None:
    assert count("5.10", BPF_TRACE_FEXIT) == (34, DONE)

"""What a trace says, that it says it at once, and that it says the same everywhere."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from msgspec import UNSET

from sim.choosing import Strategy
from sim.errors import InternalError, MisuseError
from sim.execution import Execution, Observer
from sim.hosts import direct, trio_host
from sim.macros import store
from sim.memory import Memory
from sim.strategies.random_walk import RandomWalk
from sim.strategies.replay import Choices
from sim.trace.format import EventRecord, Trace, WaitRecord
from sim.trace.reader import parse_trace
from sim.trace.writer import TraceWriter, recording
from tests.sim.trace.programs import (
    DEADLOCK,
    HEADER,
    USE_AFTER_FREE,
    Box,
    Host,
    Item,
    box_deadlock,
    builder,
    chosen_trace,
    random_trace,
    record,
)
from tests.sim.trace.zoo import build_zoo

ROOT = Path(__file__).parents[3]
SEEDS = range(5)


def only(trace: Trace, op: str, thread: str) -> EventRecord:
    (event,) = [e for e in trace.events if e.op == op and e.thread == thread]
    return event


@pytest.fixture(scope="module")
def zoo_trace() -> Trace:
    return chosen_trace(build_zoo, ())


# -- the same bytes everywhere -------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("build", [builder(), builder(box_deadlock), build_zoo])
def test_hosts_write_the_same_bytes(build: object, seed: int) -> None:
    assert callable(build)
    assert random_trace(seed, direct.run, build) == random_trace(
        seed, trio_host.run_blocking, build
    )


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_processes_write_the_same_bytes(hash_seed: str) -> None:
    program = (
        "import sys; from tests.sim.trace.programs import random_trace; "
        "from tests.sim.trace.zoo import build_zoo; "
        "sys.stdout.buffer.write(random_trace(1) + random_trace(1, build=build_zoo))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
    )
    assert done.stdout == random_trace(1) + random_trace(1, build=build_zoo)


# -- as it happens -------------------------------------------------------------------------------


class Watcher(io.BytesIO):
    """A file that knows what had been flushed to it when."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[bytes] = []

    def flush(self) -> None:
        self.flushed.append(self.getvalue())


def test_each_line_is_flushed_when_its_event_has_happened() -> None:
    file, strategy = Watcher(), RandomWalk(0)
    strategy.begin()
    with recording(file, HEADER, builder(), strategy) as execution:
        assert file.flushed == []
        direct.run(execution)
        assert len(file.flushed) == 2 + execution.step
    assert [flushed.count(b"\n") for flushed in file.flushed] == [
        number + 1 for number in range(execution.step + 3)
    ]
    assert all(flushed.endswith(b"\n") for flushed in file.flushed)


def test_run_that_raises_leaves_its_events_and_no_verdict() -> None:
    async def waits_for_trio(box: Box) -> None:
        await store(box.reads, 1)
        await trio.sleep(0)

    file = io.BytesIO()
    with pytest.raises(MisuseError):
        with recording(file, HEADER, builder(waits_for_trio), Choices(())) as execution:
            direct.run(execution)
    trace = parse_trace(file.getvalue(), "x", allow_partial=True)
    assert trace.verdict is None
    assert [event.op for event in trace.events] == ["store"]


def test_verdict_before_the_end_is_refused() -> None:
    writer = TraceWriter(lambda line: None, HEADER)
    writer.begin(builder()(Choices(()), writer))
    with pytest.raises(InternalError, match="has not ended"):
        writer.end()


def test_choices_that_nobody_showed_are_refused() -> None:
    writer = TraceWriter(lambda line: None, HEADER)
    execution: Execution = builder()(Choices(()), writer)
    writer.begin(execution)
    with pytest.raises(InternalError, match="watch"):
        direct.run(execution)


def test_writer_needs_the_execution() -> None:
    writer = TraceWriter(lambda line: None, HEADER)
    with pytest.raises(InternalError, match="begin"):
        direct.run(builder()(Choices(()), writer))


# -- what an event says --------------------------------------------------------------------------


def test_choices_of_the_trace_are_those_of_the_execution() -> None:
    file = io.BytesIO()
    with recording(file, HEADER, builder(), Choices(USE_AFTER_FREE)) as execution:
        direct.run(execution)
    trace = parse_trace(file.getvalue(), "x")
    assert trace.choices == tuple(execution.choices)
    assert record(builder(), Choices(trace.choices)) == file.getvalue()


def test_choices_name_what_there_was_to_choose_from() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    drop = only(trace, "xchg", "writer")
    assert (drop.choice, drop.enabled, drop.of) == (1, ("reader", "writer"), 0)
    chosen = only(trace, "choose", "writer")
    assert (chosen.choice, chosen.enabled, chosen.of) == (0, (), 3)


def test_access_to_freed_memory_carries_fault_and_stack() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    access = only(trace, "load", "reader")
    assert (access.fault, access.stack) == ("use-after-free", ("box_get",))
    (finding,) = trace.findings
    assert (finding.kind, finding.step, finding.stack) == (
        "use-after-free",
        access.step,
        ("box_get",),
    )
    assert trace.verdict is not None
    assert trace.verdict.verdict == "finding"


def test_allocation_and_free_carry_stacks_and_others_do_not() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    assert only(trace, "kmalloc", "main").stack == ("box_race",)
    assert only(trace, "kfree", "writer").stack == ("box_drop",)
    assert only(trace, "xchg", "writer").stack == ()


def test_deadlock_says_who_waits_for_what() -> None:
    trace = chosen_trace(builder(box_deadlock), DEADLOCK)
    assert trace.events[-1].waiting == (
        WaitRecord("A", "mutex_lock", "box.0.right", ("B",)),
        WaitRecord("B", "mutex_lock", "box.0.left", ("A",)),
    )


def test_new_object_shows_the_cells_that_are_not_zero() -> None:
    assert only(chosen_trace(builder(), ()), "kmalloc", "main").wrote == {".value": 7}


@pytest.mark.parametrize("host", [direct.run, trio_host.run_blocking])
def test_initial_state_is_that_before_the_first_event(host: Host) -> None:
    def build(strategy: Strategy, observer: Observer) -> Execution:
        async def main() -> None:
            item = memory.static(Item)  # made by the main thread before its first step
            await store(item.value, 8)

        memory = Memory()
        memory.static(Box, 0)
        return Execution(main, memory, strategy, observer=observer)

    trace = parse_trace(record(build, Choices(()), host), "x")
    assert trace.state.objects == {"box.0": {}, "item.0": {".value": 7}}
    assert trace.events[0].wrote == 8


def test_occurrences_are_counted_by_operation_function_and_label(zoo_trace: Trace) -> None:
    remarks = [e.nth for e in zoo_trace.events if e.op == "remark"]
    assert remarks == list(range(1, len(remarks) + 1))
    assert [e.nth for e in zoo_trace.events if e.op == "choose"] == [1, 2]


@pytest.mark.parametrize(
    ("op", "label", "read", "wrote"),
    [
        ("store", "page.0.data+8", UNSET, 258),
        ("atomic_add", "page.0.data+8", 258, 259),
        ("trylock", "page.0.owner", False, UNSET),
        ("sleep", "", 10, UNSET),
        ("atomic_add_return", "page.0.flags", 1, 3),
        ("kmalloc", "page#main.0", UNSET, {}),
    ],
)
def test_values(zoo_trace: Trace, op: str, label: str, read: object, wrote: object) -> None:
    event = only(zoo_trace, op, "main")
    assert (event.label, event.read, event.wrote) == (label, read, wrote)


def test_failed_cmpxchg_writes_nothing(zoo_trace: Trace) -> None:
    event = only(zoo_trace, "cmpxchg", "main")
    assert (event.read, event.operand, event.wrote) == (0, 5, UNSET)


def test_access_by_address_names_what_is_there(zoo_trace: Trace) -> None:
    inside, outside = [e for e in zoo_trace.events if e.op == "load"]
    assert (inside.label, inside.fault) == ("page.0.data+0", "")
    assert (outside.label, outside.fault) == ("0xffffffff82001000", "wild-memory-access")


def test_remarks_are_rendered_without_identity(zoo_trace: Trace) -> None:
    assert [e.operand for e in zoo_trace.events if e.op == "remark"] == [
        "01ff",
        {"b": 1, "a": [2.5, "inf"]},
        ["blue", "green", "red"],
        "FAST",
        {"name": "nop", "tags": ["x", "y", "z"]},
        "<Opaque>",
        "len",
        "0x1000000000000000",
        "\\ud800\x1b[31m",
        "smp_mb",
    ]
    assert only(zoo_trace, "crash", "reader").operand == (
        "KeyError: <tests.sim.trace.zoo.Opaque object>"
    )

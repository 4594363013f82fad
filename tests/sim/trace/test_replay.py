"""Strict replay agrees with its own program, and says exactly where another one differs."""

import dataclasses

import msgspec
import pytest
import trio

from sim.errors import MisuseError
from sim.hosts import direct, trio_host
from sim.strategies.replay import Choices
from sim.trace.format import EventRecord, State, Trace, Verdict
from sim.trace.reader import parse_trace
from sim.trace.replay import Divergence, replay
from sim.trace.writer import Build
from tests.sim.trace.programs import (
    DEADLOCK,
    USE_AFTER_FREE,
    Box,
    Host,
    box_deadlock,
    builder,
    chosen_trace,
    random_trace,
    record,
)
from tests.sim.trace.zoo import build_zoo

HOSTS: list[Host] = [direct.run, trio_host.run_blocking]
hosts = pytest.mark.parametrize("host", HOSTS, ids=["direct", "trio"])


def diverged(trace: Trace, build: Build, host: Host = direct.run) -> Divergence:
    divergence = replay(trace, build, host)
    assert divergence is not None
    return divergence


def with_event(trace: Trace, step: int, **changes: object) -> Trace:
    events = list(trace.events)
    events[step] = msgspec.structs.replace(events[step], **changes)
    return dataclasses.replace(trace, events=tuple(events))


# -- agreeing ------------------------------------------------------------------------------------


@hosts
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("build", [builder(), builder(box_deadlock), build_zoo])
def test_same_program_agrees(build: Build, seed: int, host: Host) -> None:
    trace = parse_trace(random_trace(seed, build=build), "x")
    assert replay(trace, build, host) is None


def test_header_is_a_hint() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    header = msgspec.structs.replace(trace.header, tool="other", digest="other", workload="other")
    assert replay(dataclasses.replace(trace, header=header), builder(), direct.run) is None


@hosts
@pytest.mark.parametrize("lines", range(2, 12))
def test_killed_run_agrees_as_far_as_it_went(lines: int, host: Host) -> None:
    data = record(builder(), Choices(USE_AFTER_FREE)).splitlines(keepends=True)
    trace = parse_trace(b"".join(data[:lines]), "x", allow_partial=True)
    assert replay(trace, builder(), host) is None


@pytest.mark.parametrize("max_steps", [4, 5, 100])
def test_run_cut_at_its_limit_agrees_under_any_limit(max_steps: int) -> None:
    trace = parse_trace(record(builder(max_steps=4), Choices(USE_AFTER_FREE)), "x")
    assert trace.verdict is not None
    assert trace.verdict.verdict == "step-limit"
    assert replay(trace, builder(max_steps=max_steps), direct.run) is None


# -- differing -----------------------------------------------------------------------------------


@hosts
def test_edited_program_diverges_at_its_first_other_step(host: Host) -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    divergence = diverged(trace, builder(extra=1), host)
    assert divergence.step == 9
    assert divergence.expected == trace.events[9]
    assert isinstance(divergence.got, EventRecord)
    assert (divergence.got.thread, divergence.got.label) == ("reader", "box.0.reads")
    assert divergence.enabled == ("reader",)
    assert divergence.around == trace.events[4:]


def test_ten_events_around_are_shown() -> None:
    trace = with_event(chosen_trace(build_zoo, ()), 20, fault="none")
    assert [event.step for event in diverged(trace, build_zoo).around] == list(range(15, 25))


def test_other_enabled_threads_are_a_difference() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    wider = with_event(trace, 4, enabled=("reader", "writer", "third"))
    divergence = diverged(wider, builder())
    assert (divergence.step, divergence.got) == (4, trace.events[4])
    assert "enabled   reader, writer (recorded: reader, writer, third)" in str(divergence)


def test_thread_that_cannot_go_on_is_a_difference() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    third = with_event(trace, 4, thread="third", enabled=("third", "writer"))
    assert diverged(third, builder()).step == 4


def test_choice_among_more_values_is_a_difference() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    divergence = diverged(with_event(trace, 6, choice=4, of=5), builder())
    assert (divergence.step, divergence.got) == (6, trace.events[6])


def test_choice_that_was_none_is_a_difference() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    without = with_event(trace, 6, choice=msgspec.UNSET, of=1)
    assert diverged(without, builder()).step == 6


def test_other_initial_state_is_a_difference() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    other = dataclasses.replace(trace, state=State({"box.0": {".reads": 1}}))
    divergence = diverged(other, builder())
    assert (divergence.step, divergence.got) == (0, trace.state)
    assert "box.0: {.reads: 1} was recorded, now {}" in str(divergence)


def test_other_finding_is_a_difference() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    assert trace.verdict is not None
    other = dataclasses.replace(trace, verdict=msgspec.structs.replace(trace.verdict, findings=()))
    divergence = diverged(other, builder())
    assert (divergence.step, divergence.got) == (10, trace.verdict)
    assert "got       the end: finding after 10 steps: BUG: KASAN:" in str(divergence)


def test_run_that_ends_early_is_a_difference() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    another = msgspec.structs.replace(trace.events[-1], step=10)
    longer = dataclasses.replace(trace, events=(*trace.events, another))
    divergence = diverged(longer, builder())
    assert (divergence.step, divergence.enabled) == (10, ())
    assert isinstance(divergence.got, Verdict)


def test_run_that_goes_on_is_a_difference() -> None:
    trace = chosen_trace(builder(box_deadlock), DEADLOCK)
    shorter = dataclasses.replace(trace, events=trace.events[:-1])
    divergence = diverged(shorter, builder(box_deadlock))
    assert divergence.step == 5
    assert isinstance(divergence.expected, Verdict)
    assert divergence.got == trace.events[-1]


def test_values_of_another_type_are_a_difference() -> None:
    trace = chosen_trace(build_zoo, ())
    (step,) = [event.step for event in trace.events if event.op == "trylock"]
    assert trace.events[step].read is False
    assert diverged(with_event(trace, step, read=0), build_zoo).step == step


def test_message_shows_all_there_is_to_know() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    assert str(diverged(trace, builder(extra=1))).splitlines() == [
        "replay of box.jsonl diverged at step 9",
        "  expected  step 9  reader: load item#main.0.value = 7 !! use-after-free  in box_get",
        "  got       step 9  reader: load box.0.reads = 0  in box_get",
        "    label: item#main.0.value was recorded, now box.0.reads",
        "    read: 7 was recorded, now 0",
        "    fault: use-after-free was recorded, now nothing",
        "    stack: [box_get] was recorded, now nothing",
        "  enabled   reader",
        "  recorded around it:",
        "    step 4  reader: READ_ONCE box.0.item = item#main.0  in box_get",
        "    step 5  writer: xchg box.0.item item#main.0 -> NULL  in box_drop",
        "    step 6  writer: choose = 0 of 3  in box_drop",
        "    step 7  writer: kfree item#main.0  in box_drop",
        "    step 8  writer: exit",
        "  > step 9  reader: load item#main.0.value = 7 !! use-after-free  in box_get",
    ]


@hosts
def test_misuse_by_an_edited_program_is_no_difference(host: Host) -> None:
    async def waits_for_trio(box: Box) -> None:
        del box
        await trio.sleep(0)

    trace = chosen_trace(builder(), USE_AFTER_FREE)
    with pytest.raises(MisuseError):
        replay(trace, builder(waits_for_trio), host)

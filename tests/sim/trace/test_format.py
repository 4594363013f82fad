"""Traces survive being written and read; events as text are short, true and harmless."""

import pytest
from hypothesis import given

from sim.trace.format import EventRecord, Trace, describe_event, describe_value, plain
from sim.trace.reader import parse_trace
from tests.sim.trace.programs import USE_AFTER_FREE, builder, chosen_trace
from tests.sim.trace.records import TEXT, VALUES, events, file_of, traces


@given(traces())
def test_trace_survives_a_round_trip(trace: Trace) -> None:
    data = file_of(trace)
    read = parse_trace(data, trace.path)
    assert read == trace
    assert file_of(read) == data
    assert read.last_line == data.count(b"\n")


def test_threads_are_named_as_they_start() -> None:
    assert chosen_trace(builder(), USE_AFTER_FREE).threads == ("main", "reader", "writer")


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            EventRecord(step=7, thread="A", op="READ_ONCE", kind="LOAD", label="b.x", read=None),
            "step 7  A: READ_ONCE b.x = NULL",
        ),
        (
            EventRecord(
                step=0,
                thread="A",
                op="store",
                kind="STORE",
                label="b.x",
                function="f",
                nth=2,
                wrote=True,
            ),
            "step 0  A: store b.x := true  in f (occurrence 2)",
        ),
        (
            EventRecord(step=0, thread="A", op="xchg", kind="XCHG", label="b.x", read=1, wrote="y"),
            "step 0  A: xchg b.x 1 -> y",
        ),
        (
            EventRecord(step=0, thread="A", op="cmpxchg", kind="CMPXCHG", read=1, operand=5),
            "step 0  A: cmpxchg = 1 (5)",
        ),
        (
            EventRecord(step=0, thread="A", op="choose", kind="CHOOSE", choice=2, of=3),
            "step 0  A: choose = 2 of 3",
        ),
        (
            EventRecord(step=0, thread="A", op="load", kind="LOAD", read=9, fault="null-ptr-deref"),
            "step 0  A: load = 9 !! null-ptr-deref",
        ),
        (
            EventRecord(step=0, thread="A", op="spawn", kind="FORK", label="B", operand=["f", [1]]),
            "step 0  A: spawn B (f, [1])",
        ),
    ],
)
def test_event_as_text(event: EventRecord, text: str) -> None:
    assert describe_event(event) == text


@given(events(0))
def test_event_as_text_is_one_harmless_line(event: EventRecord) -> None:
    assert describe_event(event).isprintable()


@given(TEXT | VALUES)
def test_value_as_text_is_harmless(value: object) -> None:
    assert describe_value(value).isprintable()


def test_plain_escapes_what_a_terminal_would_act_on() -> None:
    assert plain("a\x1b[31m\n") == "a\\x1b[31m\\n"
    assert plain("naïve") == "naïve"

"""Hypothesis strategies for the records of a trace, and whole traces of them."""

from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from sim import ops
from sim.trace.format import (
    DetailRecord,
    EventRecord,
    FindingRecord,
    Header,
    Line,
    State,
    Trace,
    Verdict,
    WaitRecord,
    encode,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OPTIONAL = st.just(UNSET) | VALUES
WAITS = st.builds(WaitRecord, TEXT, TEXT, TEXT, TEXTS)

HEADERS = st.builds(
    Header,
    format=st.just("rcusim-trace"),
    version=st.just(1),
    workload=TEXT,
    parameters=st.dictionaries(TEXT, VALUES, max_size=3),
    environment=st.dictionaries(TEXT, TEXT, max_size=3),
    strategy=TEXT,
    seed=st.none() | st.integers(0, 2**53),
    execution=st.integers(1, 2**53),
    digest=TEXT,
    tool=TEXT,
    python=TEXT,
)
STATES = st.builds(
    State, st.dictionaries(TEXT, st.dictionaries(TEXT, VALUES, max_size=2), max_size=2)
)
DETAILS = st.builds(DetailRecord, TEXT, TEXTS)


@st.composite
def events(draw: st.DrawFn, step: int) -> EventRecord:
    thread, of = draw(TEXT), 0
    choice: int | UnsetType = UNSET
    enabled: tuple[str, ...] = ()
    match draw(st.sampled_from(["none", "thread", "value"])):
        case "thread":
            enabled = draw(st.permutations([thread, *draw(TEXTS)]).map(tuple))
            choice = enabled.index(thread)
        case "value":
            of = draw(st.integers(2, 5))
            choice = draw(st.integers(0, of - 1))
    return EventRecord(
        step=step,
        thread=thread,
        op=draw(TEXT),
        kind=draw(st.sampled_from(ops.KIND_NAMES)),
        label=draw(TEXT),
        function=draw(TEXT),
        nth=draw(st.integers(1, 9)),
        read=draw(OPTIONAL),
        wrote=draw(OPTIONAL),
        operand=draw(OPTIONAL),
        fault=draw(TEXT),
        stack=draw(TEXTS),
        choice=choice,
        enabled=enabled,
        of=of,
        waiting=draw(st.lists(WAITS, max_size=2).map(tuple)),
    )


@st.composite
def findings(draw: st.DrawFn) -> FindingRecord:
    return FindingRecord(
        kind=draw(TEXT),
        title=draw(TEXT),
        threads=draw(TEXTS),
        step=draw(st.integers(0, 5)),
        decides=draw(st.booleans()),
        fatal=draw(st.booleans()),
        stack=draw(TEXTS),
        details=draw(st.lists(DETAILS, max_size=2).map(tuple)),
    )


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    made = tuple(draw(events(step)) for step in range(draw(st.integers(0, 4))))
    verdict = Verdict(
        draw(st.sampled_from(["done", "deadlock", "finding", "step-limit"])),
        len(made),
        draw(st.lists(findings(), max_size=2).map(tuple)),
    )
    return Trace("x.jsonl", draw(HEADERS), draw(STATES), made, verdict)


def file_of(trace: Trace) -> bytes:
    lines: list[Line] = [trace.header, trace.state, *trace.events]
    if trace.verdict is not None:
        lines.append(trace.verdict)
    return b"".join(encode(line) for line in lines)

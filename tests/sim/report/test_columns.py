"""A trace as columns: readable, within its width, and the same text every time."""

import dataclasses
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from sim.errors import UsageError
from sim.report.columns import MIN_WIDTH, Since, render_columns
from sim.trace.format import Trace
from sim.trace.writer import Build
from tests.sim.trace.programs import (
    DEADLOCK,
    USE_AFTER_FREE,
    box_deadlock,
    builder,
    chosen_trace,
)
from tests.sim.trace.records import traces
from tests.sim.trace.zoo import build_zoo

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("since", ["threads", "all"])
@pytest.mark.parametrize("width", [100, 60, 40])
@pytest.mark.parametrize(
    ("name", "build", "choices"),
    [
        ("use_after_free", builder(), USE_AFTER_FREE),
        ("deadlock", builder(box_deadlock), DEADLOCK),
    ],
)
def test_columns_of_a_run(
    name: str, build: Build, choices: tuple[int, ...], width: int, since: Since
) -> None:
    text = render_columns(chosen_trace(build, choices), width=width, since=since)
    assert f"{text}\n" == (GOLDEN / f"{name}.{since}.{width}.txt").read_text()


def test_example_in_the_documentation_is_true() -> None:
    documentation = render_columns.__globals__["__doc__"].replace("\n    ", "\n")
    assert render_columns(chosen_trace(builder(), USE_AFTER_FREE), width=90) in documentation


@given(traces(), st.integers(MIN_WIDTH, 120), st.sampled_from(["threads", "all"]))
def test_any_trace_fits_its_width_and_is_harmless(trace: Trace, width: int, since: Since) -> None:
    lines = render_columns(trace, width=width, since=since).split("\n")
    assert all(line.isprintable() and cell_len(line) <= width for line in lines)


@pytest.mark.parametrize("threads", [1, 5, 20, 200])
def test_many_threads_fit(threads: int) -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    events = [
        msgspec.structs.replace(trace.events[1], step=step, thread=f"kworker/{step}")
        for step in range(threads)
    ]
    text = render_columns(dataclasses.replace(trace, events=tuple(events)))
    assert all(f"kworker/{step}" in text for step in range(threads))
    assert all(len(line) <= 100 for line in text.split("\n"))


def test_too_narrow_is_refused() -> None:
    with pytest.raises(UsageError, match="39 columns are too few"):
        render_columns(chosen_trace(builder(), ()), width=39)


def test_setup_is_not_folded_over_a_finding() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    assert trace.verdict is not None
    early = msgspec.structs.replace(trace.findings[0], step=2)
    verdict = msgspec.structs.replace(trace.verdict, findings=(early,))
    text = render_columns(dataclasses.replace(trace, verdict=verdict))
    assert "2 steps before two threads could go on" in text
    assert early.title in text


def test_run_without_choices_is_not_folded() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    alone = dataclasses.replace(trace, events=trace.events[:4], verdict=None)
    assert render_columns(alone) == render_columns(alone, since="all")


def test_killed_run_says_where_its_trace_ends() -> None:
    trace = dataclasses.replace(chosen_trace(builder(), USE_AFTER_FREE), verdict=None)
    assert render_columns(trace).endswith("no verdict: the trace ends with line 12")


def test_objects_of_one_kind_keep_their_labels() -> None:
    text = render_columns(chosen_trace(build_zoo, ()), since="all")
    assert "page.0.flags" in text  # page#main.0 is another page
    assert "kmalloc page#main.0" in text
    assert "preempt_disable cpu" in text  # there is only one
    assert "cpu.0" not in text


def test_long_rows_are_cut() -> None:
    trace = chosen_trace(builder(), USE_AFTER_FREE)
    long = msgspec.structs.replace(trace.events[1], wrote="word " * 1000)
    events = (trace.events[0], long, *trace.events[2:])
    text = render_columns(dataclasses.replace(trace, events=events), since="all")
    assert text.count("word") < 50
    assert "...\n" in text

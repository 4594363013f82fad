"""What is said of the size of a search."""

import pytest

from sim import console
from sim.console import progress_text, result_json, summary
from sim.events import Finding
from sim.explore import Result
from sim.totals import COMPLETE, FOUND, Found
from sim.workload import find

PROGRAM = find("readers").prepare({"n": 3})


def stopped(**known: float) -> Result:
    result = Result(executions=1000, elapsed_s=2.0, optimal=True, stopped="the budget of 2 s")
    for name, value in known.items():
        setattr(result, name, value)
    return result


def last(result: Result) -> str:
    return summary(PROGRAM, result)[-1].strip()


def test_an_estimate_comes_with_its_interval_and_what_is_certain() -> None:
    result = stopped(
        estimate=1_234_567.8, estimate_low=412_345.6, estimate_high=3_000_000.0, at_least=35_000
    )

    assert last(result) == (
        "about 1.2e6 executions in all (between 410,000 and 3e6), at least 35,000 for certain"
    )
    told = result_json(PROGRAM, {}, result)
    assert told["estimate"] == 1_234_567.8
    assert (told["estimate_low"], told["estimate_high"]) == (412_345.6, 3_000_000.0)
    assert told["at_least"] == 35_000


def test_what_has_been_counted_is_no_estimate() -> None:
    result = stopped(estimate=1040.0, estimate_low=1040.0, estimate_high=1040.0, at_least=1010)

    assert last(result) == "1,040 executions in all"


def test_without_an_estimate_there_is_what_is_certain() -> None:
    result = stopped(at_least=1010)

    assert (
        last(result) == "at least 1,010 executions in all; no estimate, for samples take too long"
    )


def test_an_estimate_of_another_strategy_is_a_rough_one() -> None:
    assert last(stopped(estimate=924.2)) == "about 920 executions in all (a rough estimate)"


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_long_search_that_ends_without_a_verdict_says_if_it_could_have_been_faster(
    is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "compiled", lambda: is_compiled)
    said = "the engine runs as Python: rcusim-compile makes it much faster"

    assert (last(stopped(elapsed_s=60.0, at_least=1010)) == said) is not is_compiled
    assert last(stopped(elapsed_s=2.0, at_least=1010)) != said


def test_a_strategy_that_knows_nothing_says_nothing() -> None:
    assert "executions in all" not in last(stopped())


INTERVAL = {"estimate": 5e6, "estimate_low": 2e6, "estimate_high": 1e7}


@pytest.mark.parametrize(
    ("optimal", "stopped_by", "known", "shown"),
    [
        (True, "", {}, "1,000 executions, 500/s, 1,000 classes, 0 findings"),
        (
            True,
            "",
            INTERVAL,
            "1,000 executions, 500/s, 1,000 classes of about 5e6, 0 findings",
        ),
        (True, "the budget", {}, "1,000 executions, 500/s, 1,000 classes, estimating"),
        (True, FOUND, {}, "1,000 executions, 500/s, 1,000 classes, 0 findings"),
        (False, "", {"estimate": 5e6}, "1,000 executions of about 5e6, 500/s, 0 findings"),
    ],
)
def test_the_progress_line_says_how_far_it_is(
    optimal: bool, stopped_by: str, known: dict[str, float], shown: str
) -> None:
    result = stopped(**known)
    result.optimal, result.stopped = optimal, stopped_by

    assert progress_text(result) == shown


def test_findings_of_one_title_are_told_apart_by_their_tasks() -> None:
    found = [
        Found(Finding("kernel-bug", "kernel BUG in f!", tasks, 1), 1, False, ())
        for tasks in (("t0",), ("t1", "main"))
    ]
    result = Result(executions=2, findings=found, stopped=FOUND)

    lines = [line.strip() for line in summary(PROGRAM, result)[1:]]
    assert lines == [
        "kernel BUG in f!  (execution 1; tasks t0)",
        "kernel BUG in f!  (execution 1; tasks t1, main)",
    ]


def test_a_complete_search_says_so_whatever_it_found() -> None:
    result = Result(
        executions=12, fatal=2, optimal=True, complete=True, stopped=COMPLETE, findings=[]
    )
    finding = Finding("kernel-bug", "kernel BUG in f!", ("t0",), 1)
    result.findings.append(Found(finding, 1, False, ()))

    assert summary(PROGRAM, result)[1] == (
        "all interleavings explored, 10 classes up to the order of independent steps, "
        "2 executions ended by a finding"
    )


def test_whoever_spins_for_ever_is_told_of_cpu_relax() -> None:
    assert "cpu_relax(cell, seen)" in last(stopped(cut=1))


def test_an_estimate_beyond_all_numbers_is_shown() -> None:
    assert "more than 1e308" in last(stopped(estimate=float("inf")))


def test_why_a_complete_search_is_no_proof() -> None:
    result = Result(executions=2, complete=True, stopped=COMPLETE, doubts={"it was dark": None})

    assert result.verdict == "inconclusive"
    assert [line.strip() for line in summary(PROGRAM, result)[1:3]] == [
        "nothing found in all interleavings explored, but this is no proof:",
        "it was dark",
    ]
    assert result_json(PROGRAM, {}, result)["doubts"] == ["it was dark"]


def test_what_is_in_doubt_is_in_doubt_under_a_bound_and_beside_a_finding() -> None:
    doubts = {"it was dark": None}
    bounded = Result(executions=2, complete=True, bound=1, stopped=COMPLETE, doubts=doubts)
    found = Result(executions=2, complete=True, optimal=True, stopped=COMPLETE, doubts=doubts)
    found.findings.append(
        Found(Finding("kernel-bug", "kernel BUG in f!", ("t0",), 1), 1, False, ())
    )

    assert "it was dark" in "".join(summary(PROGRAM, bounded))
    assert "all interleavings explored" not in "".join(summary(PROGRAM, found))

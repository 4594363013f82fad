"""The table of proofs: what it is about, and that it says what a search told."""

from typing import Any

import pytest

from sim.totals import COMPLETE
from tests.proofs import (
    Case,
    Searched,
    cases,
    conclusion,
    head,
    in_reach,
    line,
    obstacles,
    write,
)
from tests.workloads.test_controls import CONTROLS
from tests.workloads.test_proofs import PROVED, PROVED_SLOW

TOLD: dict[str, Any] = {
    "verdict": "proved",
    "classes": 1234,
    "blocked": 0,
    "executions": 1234,
    "elapsed_s": 0.5,
    "complete": True,
    "cut": 0,
    "shared_cpu": False,
    "holder_waited": False,
    "doubts": [],
    "stopped": COMPLETE,
    "at_least": None,
    "estimate": None,
    "findings": [],
}
STOPPED: dict[str, Any] = {
    **TOLD,
    "verdict": "inconclusive",
    "classes": None,
    "complete": False,
    "stopped": "the budget of 40 s",
    "at_least": 4321,
}
CASE = Case("w", "5.10", (("n", "2"),), ("mutant:m",), ("abc",))


def test_every_program_is_in_it_once() -> None:
    identities = [case.identity for case in cases()]

    assert len(set(identities)) == len(identities)


def test_all_controls_are_in_it_and_all_proofs_that_are_tested() -> None:
    identities = [case.identity for case in cases()]

    for workload, version in CONTROLS:
        assert Case(workload, version).identity in identities
    for workload, version, params, _ in PROVED + PROVED_SLOW:
        assert Case(workload, version, tuple(params.items())).identity in identities


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (TOLD, "proved | 1,234 | 0 | 0.50 | 1.2 |  |  |  |  |"),
        (STOPPED, "inconclusive |  | 0 | 0.50 | 1.2 | 1,234 | 4,321 |  |  |"),
        (
            {**STOPPED, "estimate": 2e6, "estimate_low": 1e6, "estimate_high": 3e7},
            "inconclusive |  | 0 | 0.50 | 1.2 | 1,234 | 4,321 | 2.0e+06 (1.0e+06 to 3.0e+07) |  |",
        ),
        (
            {**STOPPED, "verdict": "finding", "findings": [{"kind": "use-after-free"}]},
            "**use-after-free** |  | 0 | 0.50 | 1.2 | 1,234 | 4,321 |  |  |",
        ),
    ],
)
def test_a_line(told: dict[str, Any], expected: str) -> None:
    assert line(Searched(CASE, told, 1.25)) == f"| w | n=2 | 5.10 +mutant:m -abc | {expected}"


def test_a_search_that_failed_is_not_clean() -> None:
    searched = Searched(CASE, {}, 1.25, "exit code 5: it broke")

    assert not searched.clean
    assert line(searched).count("|") == next(head()).count("|")
    assert conclusion([searched]) == "1 row: 1 error."


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (STOPPED, ""),
        ({**STOPPED, "shared_cpu": True}, ""),
        (
            {**STOPPED, "shared_cpu": True, "holder_waited": True},
            "threads share a CPU, and a holder waits",
        ),
        ({**STOPPED, "cut": 1200}, "1,200 executions cut at the step limit"),
    ],
)
def test_what_no_budget_would_mend(told: dict[str, Any], expected: str) -> None:
    assert obstacles(told) == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (TOLD, False),
        (STOPPED, False),
        ({**STOPPED, "estimate": 12_340.0}, True),  # 1,234 in half a second
        ({**STOPPED, "estimate": 12_341.0}, False),
        ({**STOPPED, "estimate": 2000.0, "shared_cpu": True, "holder_waited": True}, False),
    ],
)
def test_what_is_searched_again(told: dict[str, Any], expected: bool) -> None:
    assert in_reach(Searched(CASE, told), 5.0) == expected


def test_what_is_generated_goes_between_the_marks(tmp_path: Any) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- generated: python -m tests.proofs -->\nold\n"
        "<!-- end of what is generated -->\nafter\n"
    )

    write(page, "new")

    assert page.read_text() == (
        "before\n<!-- generated: python -m tests.proofs -->\nnew\n"
        "<!-- end of what is generated -->\nafter\n"
    )

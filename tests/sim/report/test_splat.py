"""Findings look as they do in a kernel log."""

from pathlib import Path

import pytest
from hypothesis import given

from sim.report.splat import render_splat, render_splats
from sim.trace.format import DetailRecord, FindingRecord
from sim.trace.writer import Build
from tests.sim.trace.programs import DEADLOCK, USE_AFTER_FREE, box_deadlock, builder, chosen_trace
from tests.sim.trace.records import findings

GOLDEN = Path(__file__).parent / "golden"
RULE = "=" * 66


@pytest.mark.parametrize(
    ("name", "build", "choices"),
    [
        ("use_after_free", builder(), USE_AFTER_FREE),
        ("deadlock", builder(box_deadlock), DEADLOCK),
    ],
)
def test_splat_of_a_run(name: str, build: Build, choices: tuple[int, ...]) -> None:
    text = render_splats(chosen_trace(build, choices))
    assert f"{text}\n" == (GOLDEN / f"{name}.splat.txt").read_text()


def test_run_without_findings_has_no_splats() -> None:
    assert render_splats(chosen_trace(builder(), ())) == ""


def test_finding_without_details_shows_its_stack() -> None:
    finding = FindingRecord(
        kind="bug", title="kernel BUG", threads=("A",), step=3, stack=("f+4", "g"), decides=False
    )
    assert render_splat(finding).splitlines() == [
        RULE,
        "kernel BUG",
        "Call Trace:",
        " f+4",
        " g",
        "",
        "At step 3, task A (does not decide the verdict)",
        RULE,
    ]


def test_details_are_indented_as_their_detector_did_or_by_one() -> None:
    details = DetailRecord("Heading:", ("one", " two", "   three"))
    finding = FindingRecord(kind="k", title="t", threads=("A", "B"), step=0, details=(details,))
    assert render_splat(finding).splitlines()[2:6] == ["Heading:", " one", " two", "   three"]


@given(findings())
def test_splat_of_any_finding_is_harmless(finding: FindingRecord) -> None:
    lines = render_splat(finding).split("\n")
    assert all(line.isprintable() for line in lines)
    assert lines[0] == lines[-1] == RULE

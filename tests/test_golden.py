"""Golden traces replay event for event, in both hosts, and their reports say the same."""

from pathlib import Path

import pytest

from sim.record import builder, program_of
from sim.run import HOSTS
from sim.trace.reader import read_trace
from sim.trace.replay import replay
from tests.golden import GOLDEN, TRACES, Golden, report

FILES = sorted(TRACES.glob("*.jsonl"))


def test_every_golden_trace_is_there_and_no_other() -> None:
    assert sorted(golden.path for golden in GOLDEN) == FILES


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_golden_trace_replays(path: Path, host: str) -> None:
    trace = read_trace(path)
    divergence = replay(trace, builder(program_of(trace)), HOSTS[host])

    assert divergence is None, str(divergence)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
def test_its_report_says_what_the_trace_says(golden: Golden) -> None:
    trace = read_trace(golden.path)

    assert trace.findings
    assert golden.path.with_suffix(".txt").read_text() == report(trace)

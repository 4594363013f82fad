"""A finding as kernel people read it every day: the splat in the log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sim.trace.format import DetailRecord, FindingRecord, Trace, plain

_RULE: Final = "=" * 66  # as long as KASAN's


def render_splats(trace: Trace) -> str:
    """All findings of a trace, in the order in which they were noticed; empty without any."""
    return "\n".join(render_splat(finding) for finding in trace.findings)


def render_splat(finding: FindingRecord) -> str:
    """One finding: its title, the parts of its report, and where in the run it was noticed."""
    return "\n".join([_RULE, *map(plain, _lines(finding)), _RULE])


def _lines(finding: FindingRecord) -> Iterator[str]:
    yield finding.title
    for number, detail in enumerate(finding.details or _trace_alone(finding)):
        if number:
            yield ""
        yield detail.heading
        yield from (line if line.startswith(" ") else f" {line}" for line in detail.lines)
    yield ""
    threads = "task" if len(finding.threads) == 1 else "tasks"
    verdict = "" if finding.decides else " (does not decide the verdict)"
    yield f"At step {finding.step}, {threads} {', '.join(finding.threads) or 'none'}{verdict}"


def _trace_alone(finding: FindingRecord) -> tuple[DetailRecord, ...]:
    """What the trace knows by itself about a finding without details."""
    return (DetailRecord("Call Trace:", finding.stack),) if finding.stack else ()

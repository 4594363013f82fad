"""A finding as kernel people read it every day: the splat in the log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sim.trace.format import FindingRecord, Trace, plain

_RULE: Final = "=" * 66  # as long as KASAN's


def render_splats(trace: Trace) -> str:
    """All findings of a trace, in the order in which they were noticed; empty without any."""
    return "\n".join(render_splat(finding) for finding in trace.findings)


def render_splat(finding: FindingRecord) -> str:
    """One finding: its title, where it was noticed, and the parts of its report."""
    return "\n".join([_RULE, *map(plain, _lines(finding)), _RULE])


def _lines(finding: FindingRecord) -> Iterator[str]:
    yield finding.title
    who = "thread" if len(finding.threads) == 1 else "threads"
    yield f"at step {finding.step}, {who} {', '.join(finding.threads) or 'none'}"
    if not finding.decides:
        yield "allowed by design: does not decide the verdict"
    for detail in finding.details:
        yield ""
        yield f"{detail.heading}:" if detail.lines else detail.heading
        yield from (f" {line}" for line in detail.lines)
    if not finding.details and finding.stack:
        yield ""
        yield "Call Trace:"
        yield from (f" {frame}" for frame in finding.stack)

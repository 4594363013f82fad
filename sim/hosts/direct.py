"""The direct host: resumes the coroutines itself, one after another.  Fast; for exploration."""

from __future__ import annotations

from sim.execution import Execution


def run(execution: Execution) -> None:
    """Run `execution` to its end.  Raises what `Execution.resume` raises."""
    resume = execution.resume
    advance = execution.advance
    try:
        resume(execution.boot())
        execution.start()
        while (step := advance()) is not None:
            thread, forked = step
            if forked is not None:
                resume(forked)
            resume(thread)
    finally:
        execution.close()

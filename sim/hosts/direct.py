"""The direct host: resumes the coroutines itself, one after another.  Fast; for exploration."""

from __future__ import annotations

from sim.execution import Execution


def run(execution: Execution) -> None:
    """Run `execution` to its end.  Raises what `Execution.resume` raises."""
    try:
        begin(execution)
        go_on(execution)
    finally:
        execution.close()


def begin(execution: Execution) -> None:
    """Bring `execution` to where its main thread stands at its first operation."""
    execution.resume(execution.boot())
    execution.start()


def go_on(execution: Execution) -> None:
    """Run `execution` from where it stands to its end; it is not closed."""
    while (step := execution.advance()) is not None:
        thread, forked = step
        if forked is not None:
            execution.resume(forked)
        execution.resume(thread)

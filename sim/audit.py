"""Wrong use of coroutines: operations that nobody awaits, functions of an event loop."""

from __future__ import annotations

from typing import Any

from sim.errors import MisuseError
from sim.ops import AUDIT, Op
from sim.threads import Body, Thread


def audited(thread: Thread, coroutine: Body | None) -> Op[Any]:
    """Run `thread` to its next operation, and refuse operations that were made but dropped."""
    assert coroutine is not None
    made: list[Op[Any]] = []
    AUDIT.made = made
    op: Any = None
    try:
        op = coroutine.send(thread.result)
        return op  # type: ignore[no-any-return]  # checked by the caller
    finally:
        AUDIT.made = None
        for dropped in made:
            if dropped is not op:
                raise MisuseError(
                    f"thread {thread.name} made the operation {dropped.name} and dropped it: "
                    f"write `await {dropped.name}(...)`"
                )


def refuse_foreign(thread: Thread, error: BaseException) -> None:
    """Raise MisuseError for what an event loop's functions raise outside of one."""
    told = str(error)
    if "no running event loop" in told or "must be called from async context" in told:
        raise MisuseError(
            f"thread {thread.name} awaited a function of an event loop ({told}): await only "
            "modelled functions inside a modelled thread; `sim.clock.sleep` sleeps"
        ) from None

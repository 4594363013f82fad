"""A step that happened.  In a file of its own, which can be compiled (see `sim.native`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

from sim.ops import Op

if TYPE_CHECKING:
    from sim.events import Fault, Snapshot
    from sim.threads import Thread


@final
class Event:
    """A step that happened: the operation, its result, and what memory found wrong with it.

    step      0-based number of the step in its execution
    thread    who did it; valid for inspection (stack, context) while it is being observed
    op        the operation
    result    what it returned to the thread
    fault     None unless memory found something wrong
    snapshot  the end state, on QUIESCENT and DEADLOCK only
    """

    __slots__ = ("fault", "op", "result", "snapshot", "step", "thread")

    def __init__(
        self, step: int, thread: Thread, op: Op[Any], result: Any, fault: Fault | None
    ) -> None:
        self.step: Final = step
        self.thread: Final = thread
        self.op: Final = op
        self.result: Final = result
        self.fault: Final = fault
        self.snapshot: Snapshot | None = None

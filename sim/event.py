"""What is made at every step and every end.  A file of its own: it is compiled (`sim.native`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

from sim.ops import Op

if TYPE_CHECKING:
    from sim.cells import Struct
    from sim.events import Fault, Waiting
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


@final
class Snapshot:
    """The end state of an execution, read-only.

    waiting  threads that cannot take a step (DEADLOCK)
    live     objects not freed, in order of address
    roots    objects that exist without being pointed to (static storage)
    """

    __slots__ = ("live", "roots", "waiting")

    def __init__(
        self,
        waiting: tuple[Waiting, ...],
        live: tuple[Struct, ...],
        roots: tuple[Struct, ...],
    ) -> None:
        self.waiting: Final = waiting
        self.live: Final = live
        self.roots: Final = roots

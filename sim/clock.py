"""Virtual time.

Time stands still while threads take steps; it advances only when a sleeper wakes.  A sleeper
may wake at any moment, but sleepers wake in the order of their deadlines.
"""

from __future__ import annotations

from typing import final

from sortedcontainers import SortedList

from sim.errors import MisuseError
from sim.ops import ARM, CLOCK, SLEEP, Op
from sim.threads import Thread


@final
class Clock:
    """The time in ns, and who waits for which deadline.

    invariant: `sleepers` holds one (deadline, key) per thread whose pending step is a SLEEP.
    """

    def __init__(self) -> None:
        self.now = 0
        self.sleepers: SortedList[tuple[int, int]] = SortedList()

    def arm(self, thread: Thread, deadline: int) -> None:
        """`thread` waits for `deadline` from now on."""
        self.sleepers.add((deadline, thread.key))

    def disarm(self, thread: Thread, deadline: int) -> None:
        """`thread` does not wait for it after all."""
        self.sleepers.remove((deadline, thread.key))

    def due(self, thread: Thread, deadline: int) -> bool:
        """Whether `thread` may wake next: no sleeper has an earlier deadline."""
        return bool(self.sleepers[0][0] == deadline)

    def wake(self, thread: Thread, deadline: int) -> int:
        """`thread` wakes: time moves to its deadline unless it is past it.  Returns the time."""
        self.sleepers.remove((deadline, thread.key))
        self.now = max(self.now, deadline)
        return self.now


def now() -> Op[int]:
    """Read the virtual time in ns."""
    op: Op[int] = Op(CLOCK, "now")
    return op


async def sleep(duration: int, name: str = "sleep") -> None:
    """Sleep for `duration` ns of virtual time.  MisuseError if it is negative."""
    if duration < 0:
        raise MisuseError(f"sleep({duration}): a duration is 0 or more nanoseconds")
    arm: Op[int] = Op(ARM, "arm", operand=duration)
    wake: Op[int] = Op(SLEEP, name, operand=await arm + duration)
    await wake

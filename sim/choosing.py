"""What an execution asks of a strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sim.threads import Thread


class Chooses(Protocol):
    """What every strategy does.  One file, one algorithm, one citation.

    It must depend on nothing but its arguments, its own state and its seed.  If it has a method
    `observe` and `kinds`, as a Detector, it sees the events, too.
    """

    def begin(self) -> bool:
        """Prepare the next execution; False when there is none left to explore."""
        ...

    def choose(self, thread: Thread, n: int) -> int:
        """The value 0..n-1 that `thread` gets; n is 2 or more."""
        ...


class Picks(Chooses, Protocol):
    """A strategy that is asked where two or more threads could go on."""

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        """Which thread goes next: an index into `enabled`.

        `enabled` has 2 or more threads, in order of creation; `last` took the step before, and
        need not be enabled.  An index below 0 ends the execution: whatever could follow is
        part of another one.
        """
        ...


class Selects(Chooses, Protocol):
    """A strategy that is asked before every visible step, and every choice of a value."""

    def select(
        self, alive: Sequence[Thread], able: Callable[[Thread], bool], last: Thread | None
    ) -> Thread | None:
        """Which of the threads that are alive goes next, of those that are able to.

        None: nobody is able to, or whatever could follow is part of another execution.
        """
        ...

    def ended(self, threads: Sequence[Thread], *, fatal: bool) -> None:
        """The execution is over; `fatal`: for what would follow a finding means nothing."""
        ...


Strategy = Picks | Selects

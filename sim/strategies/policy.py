"""Who goes on in a complete search where no plan says so (`sim.strategies.dpor`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, final

from sim.strategies.history import History
from sim.strategies.steps import Step
from sim.threads import Thread

TURN: Final = 1000  # steps that a thread takes in a row where others could go on


@final
class Policy:
    """Rather threads whose steps have been in no race yet, and none whose step is fatal.

    What comes before a race need not be done again to reverse it.  Any choice would do: it decides
    what the executions are, and not which classes they are of.

    contended  addresses that steps have raced for
    """

    def __init__(self, history: History, contended: Iterable[int]) -> None:
        self.contended: Final[set[int]] = set(contended)
        self._fatal: Final[set[tuple[int, int]]] = set()  # steps, by thread and place
        self._history: Final = history

    def raced(self, first: Step, second: Step) -> None:
        """The order of two steps is to be reversed."""
        self.contended.add(first.op.addr)
        self.contended.add(second.op.addr)

    def fatal(self, step: Step) -> None:
        """A finding has ended an execution at a step."""
        self._fatal.add((step.key, step.time))

    def next(
        self,
        alive: Sequence[Thread],
        able: Callable[[Thread], bool],
        last: Thread | None,
        but: tuple[int, ...],
    ) -> Thread | None:
        """Who goes on, and is not of those with the keys `but`; None: nobody is able to.

        Of several the one that took the step before, or else the first.
        """
        if last is not None and self._is_long(last):
            at = next((nth + 1 for nth, thread in enumerate(alive) if thread is last), 0)
            for thread in (*alive[at:], *alive[:at]):
                if thread is not last and thread.key not in but and able(thread):
                    return thread
        if last is not None and last.key not in but and able(last) and not self._raced(last):
            return last
        found: Thread | None = None
        fatal: Thread | None = None
        for thread in alive:
            if thread.key in but or not able(thread):
                continue
            if not self._raced(thread):
                return thread
            if self._fatal and self._is_fatal(thread):
                fatal = fatal or thread
            elif found is None:
                found = thread
        return found or fatal

    def _is_long(self, last: Thread) -> bool:
        """Whether a thread has had its turn: others are to come before a step limit does."""
        own = self._history.of[self._history.number_of(last.key)]
        return len(own) >= TURN and own[-TURN] == len(self._history.steps) - TURN

    def _raced(self, thread: Thread) -> bool:
        """Whether what the thread is about to touch has been raced for, or its step is fatal."""
        op = thread.pending
        assert op is not None
        return op.addr in self.contended or (bool(self._fatal) and self._is_fatal(thread))

    def _is_fatal(self, thread: Thread) -> bool:
        """Whether the step that the thread stands before has been fatal somewhere."""
        history = self._history
        taken = len(history.of[history.number_of(thread.key)])
        return (thread.key, taken + 1) in self._fatal

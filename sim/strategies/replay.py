"""Replay: make given choices again, then either stop or go on with another strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from sim import ops
from sim.errors import UsageError
from sim.events import Event
from sim.threads import Thread


@final
class Choices:
    """Follow a list of choices: indices into the enabled threads, and chosen values.

    Past its end, the first enabled thread and the value 0.  UsageError for a choice that the
    execution does not have.
    """

    def __init__(self, choices: Sequence[int]) -> None:
        self.choices: Final = tuple(choices)
        self._next = 0
        self._runs = 0

    def begin(self) -> bool:
        self._next = 0
        self._runs += 1
        return self._runs == 1

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        del last
        names = ", ".join(thread.name for thread in enabled)
        return self._take(len(enabled), f"enabled threads: {names}")

    def choose(self, thread: Thread, n: int) -> int:
        return self._take(n, f"values for {thread.name}")

    def _take(self, n: int, what: str) -> int:
        at = self._next
        self._next += 1
        if at >= len(self.choices):
            return 0
        if not 0 <= self.choices[at] < n:
            raise UsageError(f"choice {at} is {self.choices[at]}, but there are {n} {what}")
        return self.choices[at]


@final
class Follow:
    """Let the threads of given keys take the visible steps, in order, and choose given values.

    What a search that selects threads (`Execution.followed`) has done, in the choices of a trace.
    otherwise  what is given to threads that stood before a choice when that ended: here they choose
    needed     the most values that there were of such a choice, 0: there was none
    """

    kinds = None  # sees every event

    def __init__(
        self, keys: Sequence[int], values: Sequence[tuple[int, int]], otherwise: int = 0
    ) -> None:
        self._keys: Final = tuple(keys)
        self._given: Final = tuple(values)
        self.needed = 0
        self._otherwise: Final = otherwise
        self._at = 0
        self._left: dict[int, list[int]] = {}

    def begin(self) -> bool:
        self._at = 0
        self._left = {}
        for key, value in reversed(self._given):
            self._left.setdefault(key, []).append(value)
        return True

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        del last
        if self._at == len(self._keys):
            return -1
        return next((i for i, t in enumerate(enabled) if t.key == self._keys[self._at]), -1)

    def choose(self, thread: Thread, n: int) -> int:
        left = self._left.get(thread.key)
        if left:
            return left.pop()
        self.needed = max(self.needed, n)
        return min(self._otherwise, n - 1)

    def observe(self, event: Event) -> None:
        """Count the visible steps."""
        self._at += event.op.kind not in ops.LOCAL


@final
class Hold:
    """Follow a prefix of choices, then hold one thread back as long as another can go on.

    The directed search for a predicted use-after-free: the prefix ends where the victim is
    about to access the object, and the others are let run until it is freed, if it can be.
    """

    def __init__(self, prefix: Sequence[int], victim: str) -> None:
        self._prefix: Final = Choices(prefix)
        self._left = len(prefix)
        self._victim: Final = victim

    def begin(self) -> bool:
        return self._prefix.begin()

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        if self._left:
            self._left -= 1
            return self._prefix.pick(enabled, last)
        return next((i for i, t in enumerate(enabled) if t.name != self._victim), 0)

    def choose(self, thread: Thread, n: int) -> int:
        if self._left:
            self._left -= 1
            return self._prefix.choose(thread, n)
        return 0

"""Optimal dynamic partial-order reduction: every class of executions once, and nothing else.

Abdulla, Aronis, Jonsson, Sagonas, "Source Sets: A Foundation for Optimal Dynamic Partial Order
Reduction", JACM 64(4), 2017, Algorithm 2.  Two executions are of one class if they differ only
in the order of independent steps (Mazurkiewicz).  Wherever an execution shows a race, the other
order is put into the *wakeup tree* of the place before it, as the sequence of steps that leads
there; what has been explored *sleeps* until a dependent step wakes it.  So no execution is ever
begun that would turn out to belong to a class that was seen before.

An *event* here is a visible step together with the local ones behind it (`ops.LOCAL`).  Waiting
as in Jonsson, Lång, Sagonas, "Awaiting for Godot", FMCAD 2022: what must have happened for a
step to be possible is ordered before it but no race; the race is with the last step before which
it was possible.  So two acquisitions of a lock race, and a release and an acquisition do not.
Threads that can never go on, and those behind a fatal finding, take part with the step that they
stand before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, final

from sim import ops
from sim.errors import NondeterminismError
from sim.events import Event
from sim.strategies.history import History
from sim.strategies.races import Races
from sim.strategies.steps import Step
from sim.threads import Thread

_ENDS: Final = frozenset({ops.QUIESCENT, ops.DEADLOCK})
_NO_VALUES: Final[tuple[int, ...]] = ()


@final
class Branch:
    """A step to take from some place on, and what is to follow it: a node of a wakeup tree."""

    __slots__ = ("children", "step", "values")

    def __init__(self, step: Step, values: tuple[int, ...]) -> None:
        self.step: Final = step
        self.values = values
        self.children: list[Branch] = []


@final
class _Place:
    """A place in the current execution, between two steps.

    sleeping  steps that have been explored from here or further up, and nothing woke since
    tree      what is to be explored from here; the first is being explored
    """

    __slots__ = ("sleeping", "tree")

    def __init__(self, sleeping: list[Step], tree: list[Branch]) -> None:
        self.sleeping = sleeping
        self.tree = tree


@final
class Dpor:
    """One execution of every class.

    complete  whether every class has been executed
    blocked   executions that were begun in vain (there are none)
    kept      how many steps the next execution has in common with the one before, the start of
              the main thread included; 0: it begins anew
    rewinds   whether whoever runs the executions goes back to those steps, and does not run them
              again
    """

    kinds = None  # sees every event

    def __init__(self) -> None:
        self.complete = False
        self.blocked = 0
        self.kept = 0
        self.rewinds = False
        self._history: Final = History()
        self._races: Final = Races(self._history)
        self._places: Final[list[_Place]] = []
        # Orders that were asleep, to be tried again with other steps behind: the number of the
        # step with which each came up, the step before which it has to happen, and what.
        self._open: list[tuple[int, int, Branch]] = []
        self._at = 0  # steps taken in this execution
        self._values = _NO_VALUES  # given to the step that is being taken
        self._chosen = 0
        self._begun = False
        self._over = False  # whether nobody could take another step
        self._stuck = False  # whether threads were left then

    # -- the search ----------------------------------------------------------------------------

    def begin(self) -> bool:
        if self._begun:
            self._reverse_races()
            if not self._backtrack():
                self.complete = True
                return False
        self._begun = True
        self._over = self._stuck = False
        self._chosen = 0
        self._at = self.kept if self.rewinds and self.kept else 1
        if self.kept:
            self._values = self._history.steps[0].values
        else:
            self._boot()
        return True

    def _boot(self) -> None:
        if not self._places:
            self._places.append(_Place([], []))
        boot = self._history.boot()
        tree = self._places[0].tree
        if not tree:
            tree.append(Branch(boot, _NO_VALUES))
        self._places.append(_Place([], tree[0].children))
        self._values = tree[0].values

    def ended(self, threads: Sequence[Thread], *, fatal: bool) -> None:
        """The execution that was begun is over; `fatal`: a finding ended it."""
        self._races.ended(threads, fatal=fatal and not self._over, stuck=self._stuck)

    def _backtrack(self) -> bool:
        """Go back to the last place from which something is left to do."""
        steps, places = self._history.steps, self._places
        while steps:
            del places[len(steps) :]
            place = places[-1]
            place.sleeping.append(self._history.pop())
            del place.tree[0]
            if place.tree:
                self.kept = len(steps)
                self._open = [entry for entry in self._open if entry[0] < self.kept]
                return True
        return False

    def _reverse_races(self) -> None:
        """Put the other order of every race into a wakeup tree."""
        steps = self._history.steps
        self._open = [entry for entry in self._open if not self._insert(entry[1], entry[2])]
        for index in range(self.kept, len(steps)):
            step = steps[index]
            for first in step.races:
                self._reverse(index, first, Branch(step, _NO_VALUES))
            for nth, (value, n) in enumerate(step.choices):
                for other in range(value + 1, n):
                    self._reverse(index, index, Branch(step, (*step.values[:nth], other)))
        for first, step in self._races.pending_races():
            self._insert(first, Branch(step, _NO_VALUES))

    def _reverse(self, index: int, first: int, last: Branch) -> None:
        if not self._insert(first, last):
            self._open.append((index, first, last))

    def _insert(self, index: int, last: Branch) -> bool:
        """See to it that `last` is taken before step `index`; False if that is asleep."""
        sequence = self._history.after(index)
        place = self._places[index]
        for asleep in place.sleeping:
            if _initial(asleep, asleep.values, sequence, last) is not None:
                return False
        tree = place.tree
        following = True
        while following:
            following = False
            for branch in tree:
                found = _initial(branch.step, branch.values, sequence, last)
                if found is None:
                    continue
                if not branch.children or found == len(sequence):
                    return True  # all that can follow will be explored
                if found >= 0:
                    del sequence[found]
                tree = branch.children
                following = True
                break
        for step in sequence:
            branch = Branch(step, step.values)
            tree.append(branch)
            tree = branch.children
        tree.append(last)
        return True

    # -- one execution -------------------------------------------------------------------------

    def select(
        self, alive: Sequence[Thread], able: Callable[[Thread], bool], last: Thread | None
    ) -> Thread | None:
        """Which thread goes on."""
        at = self._at
        self._chosen = 0
        if at < self.kept:
            step = self._history.steps[at]
            self._values = step.values
            return _thread(step.key, alive, able)
        places = self._places
        place = places[at]
        if place.tree:
            branch = place.tree[0]
            self._values = branch.values
            thread: Thread | None = _thread(branch.step.key, alive, able)
        else:
            self._values = _NO_VALUES
            thread = self._any(place, alive, able, last)
        if thread is not None:
            self._history.about(thread)
        return thread

    def _any(
        self,
        place: _Place,
        alive: Sequence[Thread],
        able: Callable[[Thread], bool],
        last: Thread | None,
    ) -> Thread | None:
        """The last thread, if it can go on and is not asleep; else the first such thread."""
        asleep = [step.key for step in place.sleeping]
        if last is not None and last.key not in asleep and able(last):
            return last
        for thread in alive:
            if thread.key not in asleep and able(thread):
                return thread
        self.blocked += any(map(able, alive))
        return None

    def choose(self, thread: Thread, n: int) -> int:
        """The value that was given before, or is to be tried; 0."""
        del thread
        nth = self._chosen
        self._chosen += 1
        value = self._values[nth] if nth < len(self._values) else 0
        if value >= n:
            raise NondeterminismError(f"a choice had more than {value} values and now has {n}")
        if self._at > self.kept:
            self._places[self._at - 1].tree[0].values = self._history.chose(value, n)
        return value

    def observe(self, event: Event) -> None:
        """A step has been taken."""
        kind = event.op.kind
        if kind not in ops.LOCAL:
            self._at += 1
            if self._at > self.kept:
                self._taken(event)
            else:
                self._history.seen(event, self._at - 1)
        elif kind in _ENDS:
            self._over = True
            self._stuck = kind == ops.DEADLOCK
        elif self._at > self.kept:
            self._history.local(event)

    def _taken(self, event: Event) -> None:
        step = self._races.push(event)
        place = self._places[self._at - 1]
        if not place.tree:
            place.tree.append(Branch(step, _NO_VALUES))
        asleep = [
            other for other in place.sleeping if other.key != step.key and not other.meets(step)
        ]
        self._places.append(_Place(asleep, place.tree[0].children))


def _thread(key: int, alive: Sequence[Thread], able: Callable[[Thread], bool]) -> Thread:
    for thread in alive:
        if thread.key == key and able(thread):
            return thread
    raise NondeterminismError(
        "a thread that could go on after the same steps before cannot now: something outside the "
        "choices decides (set iteration, a global, the clock, state kept between executions)"
    )


def _initial(
    step: Step, values: tuple[int, ...], sequence: Sequence[Step], last: Branch
) -> int | None:
    """Whether `step` can come first in `sequence` and `last`: where it is, -1 if it is not there.

    None: it cannot, for a dependent step comes before it.
    """
    key = step.key
    for at, other in enumerate(sequence):
        if other.key == key:
            return at if _agree(values, other.values) else None
        if step.meets(other):
            return None
    if last.step.key == key:
        return len(sequence) if _agree(values, last.values) else None
    return None if step.meets(last.step) else -1


def _agree(some: tuple[int, ...], others: tuple[int, ...]) -> bool:
    common = min(len(some), len(others))
    return some[:common] == others[:common]

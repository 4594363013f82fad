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

from collections.abc import Sequence
from typing import Final, final

from sim import ops
from sim.errors import NondeterminismError
from sim.events import Event
from sim.strategies.races import History
from sim.strategies.steps import Step
from sim.threads import Thread

BLOCKED: Final = -1  # instead of a thread: whatever could follow has been explored
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
    """

    kinds = None  # sees every event
    asks_always = True  # also where only one thread can go on

    def __init__(self) -> None:
        self.complete = False
        self.blocked = 0
        self._history = History()
        self._places: list[_Place] = []
        self._kept = 0  # steps at the beginning that are those of the execution before
        self._at = 0  # steps taken in this execution
        self._values: tuple[int, ...] = _NO_VALUES  # given to the step that is being taken
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
        self._at = 1
        if not self._kept:
            if not self._places:
                self._places.append(_Place([], []))
            boot = self._history.boot()
            place = self._places[0]
            if not place.tree:
                place.tree.append(Branch(boot, _NO_VALUES))
            self._places.append(_Place([], place.tree[0].children))
            self._values = place.tree[0].values
        else:
            self._values = self._history.steps[0].values
        self._chosen = 0
        return True

    def ended(self, threads: Sequence[Thread], *, fatal: bool) -> None:
        """The execution that was begun is over; `fatal`: a finding ended it."""
        self._history.ended(threads, fatal=fatal and not self._over, stuck=self._stuck)

    def _backtrack(self) -> bool:
        """Go back to the last place from which something is left to do."""
        history, places = self._history, self._places
        while history.steps:
            del places[len(history.steps) :]
            place = places[-1]
            place.sleeping.append(history.pop())
            del place.tree[0]
            if place.tree:
                self._kept = len(history.steps)
                return True
        return False

    def _reverse_races(self) -> None:
        """Put the other order of every race into a wakeup tree."""
        history = self._history
        for step in history.steps:
            for race in step.races:
                if not race.settled:
                    race.settled = self._insert(race.first, Branch(step, _NO_VALUES))
        for race in history.pending_races():
            self._insert(race.first, Branch(race.second, _NO_VALUES))
        for index, step in enumerate(history.steps):
            for nth, (value, n) in enumerate(step.choices):
                for other in range(value + 1, n):
                    self._insert(index, Branch(step, (*step.values[:nth], other)))

    def _insert(self, index: int, last: Branch) -> bool:
        """See to it that `last` is taken before step `index`; False if that is asleep."""
        sequence = [Branch(step, step.values) for step in self._history.after(index)]
        sequence.append(last)
        place = self._places[index]
        for asleep in place.sleeping:
            if _initial(asleep, asleep.values, sequence) is not None:
                return False
        tree = place.tree
        while True:
            for branch in tree:
                found = _initial(branch.step, branch.values, sequence)
                if found is not None:
                    if not branch.children:
                        return True  # a leaf: all that can follow will be explored
                    if found >= 0:
                        sequence = sequence[:found] + sequence[found + 1 :]
                    tree = branch.children
                    break
            else:
                break
        for branch in sequence:
            tree.append(branch)
            tree = branch.children
        return True

    # -- one execution -------------------------------------------------------------------------

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        at = self._at
        if at < self._kept:
            step = self._history.steps[at]
            index = _index(enabled, step.key)
            self._values = step.values
        else:
            index = self._new(enabled, last)
            if index == BLOCKED:
                return BLOCKED
        self._chosen = 0
        return index

    def _new(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        """Which thread goes on where no execution has been before."""
        places = self._places
        if len(places) == self._at:
            places.append(_Place([], []))
        place = places[self._at]
        if place.tree:
            branch = place.tree[0]
            self._values = branch.values
            index = _index(enabled, branch.step.key)
        else:
            self._values = _NO_VALUES
            asleep = {step.key for step in place.sleeping}
            index = enabled.index(last) if last is not None and last in enabled else 0
            if enabled[index].key in asleep:
                awake = [i for i, thread in enumerate(enabled) if thread.key not in asleep]
                if not awake:
                    self.blocked += 1
                    return BLOCKED
                index = awake[0]
        self._history.about(enabled[index], enabled)
        return index

    def choose(self, thread: Thread, n: int) -> int:
        del thread
        nth = self._chosen
        self._chosen += 1
        value = self._values[nth] if nth < len(self._values) else 0
        if value >= n:
            raise NondeterminismError(f"a choice had more than {value} values and now has {n}")
        if self._at > self._kept:
            self._places[self._at - 1].tree[0].values = self._history.chose(value, n)
        return value

    def observe(self, event: Event) -> None:
        """A step has been taken."""
        if event.op.kind not in ops.LOCAL:
            self._at += 1
            if self._at > self._kept:
                self._taken(event)
            else:
                self._history.seen(event, self._at - 1)
        elif event.op.kind in _ENDS:
            self._over = True
            self._stuck = event.op.kind == ops.DEADLOCK
        elif self._at > self._kept:
            self._history.local(event)

    def _taken(self, event: Event) -> None:
        step = self._history.push(event)
        place = self._places[self._at - 1]
        if not place.tree:
            place.tree.append(Branch(step, _NO_VALUES))
        following = place.tree[0].children
        asleep = [
            other for other in place.sleeping if other.key != step.key and not other.meets(step)
        ]
        self._places.append(_Place(asleep, following))


def _index(enabled: Sequence[Thread], key: int) -> int:
    for index, thread in enumerate(enabled):
        if thread.key == key:
            return index
    raise NondeterminismError(
        "a thread that could go on after the same steps before cannot now: something outside the "
        "choices decides (set iteration, a global, the clock, state kept between executions)"
    )


def _initial(step: Step, values: tuple[int, ...], sequence: Sequence[Branch]) -> int | None:
    """Whether `step` can come first in `sequence`: where it is there, -1 if it is not there.

    None: it cannot, for a dependent step comes before it.
    """
    for at, branch in enumerate(sequence):
        other = branch.step
        if other.key == step.key:
            common = min(len(values), len(branch.values))
            return at if values[:common] == branch.values[:common] else None
        if step.meets(other):
            return None
    return -1

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
from sim.strategies.steps import Packed, Step
from sim.strategies.table import Table
from sim.strategies.wakeup import (
    NO_VALUES,
    Branch,
    Explored,
    Place,
    pack_explored,
    pack_tree,
    unpack_tree,
)
from sim.threads import Thread

_ENDS: Final = frozenset({ops.QUIESCENT, ops.DEADLOCK})


@final
class Dpor:
    """One execution of every class.

    complete  whether every class has been executed
    blocked   executions that were begun in vain (there are none)
    kept      how many steps the next execution has in common with the one before, the start of
              the main thread included; 0: it begins anew
    floor     the number of steps at the beginning that are for others to vary; what has to happen
              before one of them, and did not sleep there when this search began, is exported:
              where, which steps, and the last of them and its values; steps by their numbers in
              the table
    rewinds   whether whoever runs the executions goes back to those steps, and does not run them
              again
    """

    kinds = None  # sees every event

    def __init__(self, floor: int = 0) -> None:
        self.floor: Final = floor
        self.exports: list[Packed] = []
        self.table: Final = Table()
        self.complete = False
        self.blocked = 0
        self.kept = 0
        self.rewinds = False
        self._history: Final = History()
        self._races: Final = Races(self._history)
        self._places: Final[list[Place]] = []
        # Orders that were asleep, to be tried again with other steps behind: the number of the
        # step with which each came up, the step before which it has to happen, and what.
        self._open: list[tuple[int, int, Branch]] = []
        self._at = 0  # steps taken in this execution
        self._values = NO_VALUES  # given to the step that is being taken
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
            self._places.append(Place([], []))
        boot = self._history.boot()
        tree = self._places[0].tree
        if not tree:
            tree.append(Branch(boot, NO_VALUES))
        if len(self._places) == 1:
            self._places.append(Place([], tree[0].children))
        self._values = tree[0].values

    def ended(self, threads: Sequence[Thread], *, fatal: bool) -> None:
        """The execution that was begun is over; `fatal`: a finding ended it."""
        self._races.ended(threads, fatal=fatal and not self._over, stuck=self._stuck)

    def _backtrack(self) -> bool:
        """Go back to the last place from which something is left to do."""
        steps, places = self._history.steps, self._places
        while len(steps) > self.floor:
            below = places[len(steps)].explored
            del places[len(steps) :]
            place = places[-1]
            step = self._history.pop()
            place.sleeping.append(step)
            branch = place.tree.pop(0)
            if self.floor:
                place.explored.append(Explored(step, below if branch.inner else None))
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
                self._reverse(index, first, Branch(step, NO_VALUES))
            for nth, (value, n) in enumerate(step.choices):
                for other in range(value + 1, n):
                    self._reverse(index, index, Branch(step, (*step.values[:nth], other)))
        for first, step in self._races.pending_races():
            self._insert(first, Branch(step, NO_VALUES))

    def _reverse(self, index: int, first: int, last: Branch) -> None:
        if not self._insert(first, last):
            self._open.append((index, first, last))

    def _insert(self, index: int, last: Branch) -> bool:
        """See to it that `last` is taken before step `index`; False if that is asleep."""
        sequence = self._history.after(index)
        place = self._places[index]
        if index >= self.floor:
            return place.insert(sequence, last)
        if place.sleeps(sequence, last):
            return False
        number = self.table.number
        steps = [number(step) for step in sequence]
        self.exports.append([index, steps, number(last.step), list(last.values)])
        return True

    # -- parts of a search -----------------------------------------------------------------------

    def packed(self) -> Packed:
        """What is left to do after :meth:`begin` has returned true, as plain data.

        The steps that all of it has in common, what sleeps at each of them, the tree at the first,
        and the floor.
        """
        sleeping = [[step.packed() for step in place.sleeping] for place in self._places]
        tree = pack_tree(self._places[0].tree)
        return [self.kept, sleeping[: self.kept + 1], tree, self.floor]

    @classmethod
    def unpacked(cls, packed: Packed) -> Dpor:
        """A search that goes on where the one that was :meth:`packed` had come."""
        _, sleeping, tree, floor = packed
        search = cls(floor)
        branches = unpack_tree(tree)
        for asleep in sleeping:
            search._places.append(Place([Step.unpacked(step) for step in asleep], branches))
            branches = branches[0].children if branches else []
        return search

    def explored(self) -> list[list[int]]:
        """What has been explored from the floor on, at places that orders from elsewhere can reach.

        They go through inner branches: one list for each place of the current path, as far as its
        branches are inner, that at the floor first (`pack_explored`).
        """
        found = []
        for above, place in zip(
            self._places[self.floor - 1 :], self._places[self.floor :], strict=False
        ):
            if not above.tree or not above.tree[0].inner:
                break
            found.append(pack_explored(place.explored, self.table))
        return found

    def led(self) -> Packed | None:
        """The step that led to the floor, as it was taken; None if none was."""
        steps = self._history.steps
        return steps[self.floor - 1].packed() if 0 < self.floor <= len(steps) else None

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
            self._values = NO_VALUES
            thread = self._any(place, alive, able, last)
        if thread is not None:
            self._history.about(thread)
        return thread

    def _any(
        self,
        place: Place,
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
            place.tree.append(Branch(step, NO_VALUES))
        elif place.tree[0].children:
            place.tree[0].inner = True
        if len(self._places) > self._at:
            return  # known from a search that this one goes on with
        asleep = [
            other for other in place.sleeping if other.key != step.key and not other.meets(step)
        ]
        self._places.append(Place(asleep, place.tree[0].children))


def _thread(key: int, alive: Sequence[Thread], able: Callable[[Thread], bool]) -> Thread:
    for thread in alive:
        if thread.key == key and able(thread):
            return thread
    raise NondeterminismError(
        "a thread that could go on after the same steps before cannot now: something outside the "
        "choices decides (set iteration, a global, the clock, state kept between executions)"
    )

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
from sim.strategies.estimate import Tally
from sim.strategies.history import History
from sim.strategies.races import Races
from sim.strategies.steps import Packed, Step
from sim.strategies.table import Table
from sim.strategies.wakeup import Branch, Explored, Place, pack_explored, pack_tree, unpack_tree
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
              where, and which steps, by their numbers in the table
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
        self._tally: Final = Tally()
        self._at = 0  # steps taken in this execution
        self._value = 0  # given to the step that is being taken, if it chooses one
        self._begun = False
        self._given = 0  # steps in common with the search that this one goes on with, until it does
        self._over = False  # whether nobody could take another step
        self._stuck = False  # whether threads were left then

    # -- the search ----------------------------------------------------------------------------

    def begin(self) -> bool:
        if self._begun:
            self._given = 0
            self._reverse_races()
            self._tally.ended(len(self._history.steps))
            if not self._backtrack():
                self.complete = self._races.exact
                return False
        self._begun = True
        self._over = self._stuck = False
        self._at = self.kept if self.rewinds and self.kept else 1
        if not self.kept:
            self._boot()
        return True

    def begin_anew(self) -> None:
        """Prepare to run the execution that has been begun from its start; so from now on."""
        self.rewinds = False
        while len(self._history.steps) > self.kept:
            self._history.pop()
        del self._places[self.kept + 1 :]
        self._at = 1

    def _boot(self) -> None:
        if not self._places:
            self._places.append(Place([], []))
        boot = self._history.boot()
        tree = self._places[0].tree
        if not tree:
            tree.append(Branch(boot))
        if len(self._places) == 1:
            self._places.append(Place([], tree[0].children))

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
                self._tally.back(self.kept)
                return True
        return False

    def estimate(self) -> float | None:
        """How many executions there are in all: a guess, see `sim.strategies.estimate`."""
        return self._tally.estimate(self._left())

    def at_least(self) -> int:
        """How many there are for certain: those begun, and one for every branch that is known."""
        return self._tally.runs + self._begun + sum(self._left())

    def _left(self) -> list[int]:
        """By place, how many branches are known and have not been entered."""
        return [max(0, len(place.tree) - 1) for place in self._places]

    def _reverse_races(self) -> None:
        """Put the other order of every new race into a wakeup tree.

        A race of two steps that the execution before had, too, was dealt with then.  If its other
        order was asleep, it may not be so behind the steps that came now; but then it is found
        from what it slept for: that has been explored with these steps behind it, and races with
        whatever wakes it.
        """
        steps = self._history.steps
        for index in range(self.kept, len(steps)):
            step = steps[index]
            second = step
            if step.fatal:  # not where it comes before what it races with
                second = Step(step.key, step.cpu, step.op, step.number)
            for first in step.races:
                self._insert(first, second)
            if step.op.kind == ops.CHOOSE:
                for value in range(step.op.operand):
                    if value != step.value:
                        self._insert(index, Step(step.key, step.cpu, step.op, value=value))
        for first, step in self._races.pending_races():
            self._insert(first, step)

    def _insert(self, index: int, last: Step) -> None:
        """See to it that `last` is taken before step `index`."""
        sequence = self._history.after(index)
        sequence.append(last)
        place = self._places[index]
        if index >= self.floor:
            place.insert(sequence)
        elif not place.sleeps(sequence):
            self.exports.append([index, [self.table.number(step) for step in sequence]])

    # -- parts of a search -----------------------------------------------------------------------

    def packed(self) -> Packed:
        """What is left to do after :meth:`begin` has returned true, as plain data.

        The steps that all of it has in common, what sleeps at each of them, the tree at the first,
        and the floor.
        """
        sleeping = [[step.packed() for step in place.sleeping] for place in self._places]
        tree = pack_tree(self._places[0].tree)
        kept = self.kept or self._given
        return [kept, sleeping[: kept + 1], tree, self.floor]

    @classmethod
    def unpacked(cls, packed: Packed) -> Dpor:
        """A search that goes on where the one that was :meth:`packed` had come."""
        search = cls(packed[3])
        search._given, sleeping, tree, _ = packed
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
        if at < self.kept:
            step = self._history.steps[at]
            self._value = step.value
            return _thread(step.key, alive, able)
        places = self._places
        place = places[at]
        if place.tree:
            branch = place.tree[0]
            self._value = branch.step.value
            thread: Thread | None = _thread(branch.step.key, alive, able)
        else:
            self._value = 0
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
        if self._value >= n:
            raise NondeterminismError(f"a choice had more than {self._value} values and now {n}")
        return self._value

    def observe(self, event: Event) -> None:
        """A step has been taken."""
        kind = event.op.kind
        if kind not in ops.LOCAL or kind == ops.CHOOSE:
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
            place.tree.append(Branch(step))
        elif place.tree[0].children:
            place.tree[0].inner = True
        if len(self._places) > self._at:
            return  # known from a search that this one goes on with
        asleep = place.sleeping
        if asleep:
            asleep = [one for one in asleep if one.key != step.key and not one.meets(step)]
        else:
            asleep = []
        self._places.append(Place(asleep, place.tree[0].children))


def _thread(key: int, alive: Sequence[Thread], able: Callable[[Thread], bool]) -> Thread:
    for thread in alive:
        if thread.key == key and able(thread):
            return thread
    raise NondeterminismError(
        "a thread that could go on after the same steps before cannot now: something outside the "
        "choices decides (set iteration, a global, the clock, state kept between executions)"
    )

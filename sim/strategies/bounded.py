"""Partial-order reduction within a bound on preemptions, for the bounds 0, 1, 2 ... in turn.

Coons, Musuvathi, McKinley, "Bounded Partial-Order Reduction", OOPSLA 2013.  A preemption is a
switch away from a thread that could have gone on (`sim.strategies.dfs`); none can come between a
step and a choice of a value behind it.  The searches of few preemptions come first, so the first
counterexample needs as few of them as any.

Where two steps race, the thread of the second one is to be tried before the first one, too.  That
may take a preemption more than the bound allows; so it is also tried where the block of steps to
which the first one belongs begins, for there somebody is switched to anyway: the conservative
points of the paper.  A thread that cannot go on there stands for all that can.

As a switch from a thread that has to wait is free, the order of a step and of another one that it
makes possible is tried the other way round, too, which an unbounded search need not do: what
others can do for nothing depends on when a thread has to wait.

Executions of one class may be run more than once (nothing sleeps here), and those within a bound
are run again within the next.  Whatever happens in some execution within the bound happens in one
that is run: this is compared with a search of all of them, and proves nothing about the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, final

from sim import ops
from sim.events import Event
from sim.strategies.history import History
from sim.strategies.races import Races
from sim.strategies.steering import ENDS, chosen, thread_of
from sim.strategies.steps import Step
from sim.threads import Thread

Turn = tuple[int, int]  # key of a thread to go on, the value that it is given if it chooses one


@final
class _Place:
    """A place in the current execution, between two steps.

    able   keys of the threads that can go on; last: of the one that went on before, 0: it cannot
    spent  preemptions before
    turns  who is to go on from here, and has not yet
    taken  who has, or is to
    """

    __slots__ = ("able", "last", "spent", "taken", "turns")

    def __init__(self, able: list[int], last: int, spent: int) -> None:
        self.able: Final = able
        self.last: Final = last
        self.spent: Final = spent
        self.turns: Final[list[Turn]] = [(last or able[0], 0)] if able else []
        self.taken: Final = set(self.turns)

    def cost(self, key: int) -> int:
        """How many preemptions there are once the thread goes on."""
        return self.spent + (self.last not in (0, key))


@final
class Bounded:
    """Executions with at most `bound` preemptions: of each class one or more.

    bound      the most preemptions that will be tried
    within     the most preemptions that are tried now
    finished   all executions with so many preemptions have been run, None: not even those with none
    complete   whether all within `bound` have
    kept       how many steps the next execution has in common with the one before, as in `dpor`
    rewinds    whether whoever runs the executions goes back to those
    """

    kinds = None  # sees every event

    def __init__(self, bound: int) -> None:
        self.bound: Final = bound
        self.within = 0
        self.finished: int | None = None
        self.complete = False
        self.kept = 0
        self.rewinds = False
        self._history = History()
        self._races = Races(self._history)
        self._places = [_Place([], 0, 0)]
        self._at = 0  # steps taken in this execution
        self._first = (0, 0)  # the thread and value of the first step that is new in it
        self._value = 0  # given to the step that is being taken, if it chooses one
        self._begun = False
        self._refused = False  # whether the bound has kept anything from being tried
        self._over = False  # whether nobody could take another step
        self._stuck = False  # whether threads were left then

    # -- the search ----------------------------------------------------------------------------

    def begin(self) -> bool:
        if self._begun:
            self._reverse_races()
            if not self._backtrack() and not self._next_bound():
                self.complete = self.finished == self.bound
                return False
        self._begun = True
        self._over = self._stuck = False
        self._at = self.kept if self.rewinds and self.kept else 1
        if not self.kept:
            self._history.boot()
        return True

    def begin_anew(self) -> None:
        """Prepare to run the execution that has been begun from its start; so from now on."""
        self.rewinds = False
        while len(self._history.steps) > self.kept:
            self._history.pop()
        del self._places[self.kept + 1 :]
        self._places[self.kept].turns.append(self._first)
        self._at = 1

    def _next_bound(self) -> bool:
        """Go on to one preemption more; False if there is nothing to be gained."""
        over = self.within == self.bound or not self._refused
        self.finished = self.bound if over else self.within
        if over:
            return False
        self.within += 1
        self._refused = False
        self._history = History()
        self._races = Races(self._history)
        self._places = [_Place([], 0, 0)]
        self.kept = 0
        return True

    def ended(self, threads: Sequence[Thread], *, fatal: bool) -> None:
        """The execution that was begun is over; `fatal`: a finding ended it."""
        self._races.ended(threads, fatal=fatal and not self._over, stuck=self._stuck)

    def _backtrack(self) -> bool:
        """Go back to the last place from which something is left to do."""
        steps, places = self._history.steps, self._places
        while steps:
            del places[len(steps) :]
            self._history.pop()
            if places[-1].turns:
                self.kept = len(steps)
                return True
        return False

    def _reverse_races(self) -> None:
        """See to it that the other order of every race is tried."""
        steps = self._history.steps
        for index in range(self.kept, len(steps)):
            step = steps[index]
            of_cuts = (first for cut in step.cuts for first in cut.removed)
            for first in dict.fromkeys((*step.races, *of_cuts, *self._enabled_by(step))):
                self._reverse(first, step)
            if step.op.kind == ops.CHOOSE:
                for value in range(step.op.operand):
                    self._turn(index, (step.key, value))
        for first, step in self._races.pending_races():
            self._reverse(first, step)
        for step in self._races.pending:
            for cut in step.cuts:
                for first in cut.removed:
                    self._reverse(first, step)

    def _enabled_by(self, step: Step) -> Iterator[int]:
        """The last steps of other threads that happen before `step` and not before its thread."""
        history = self._history
        known = history.steps[self._before(step)].clock
        last = [
            history.of[number][time - 1]
            for number, time in enumerate(step.clock)
            if number != step.number and time > (known[number] if number < len(known) else 0)
        ]
        for one in last:
            if not any(one != other and history.is_after(one, other) for other in last):
                yield one

    def _before(self, step: Step) -> int:
        """What the thread of `step` did before it: its own step, or its parent's."""
        if step.time > 1:
            return self._history.of[step.number][step.time - 2]
        return self._history.born.get(step.number, 0)

    def _reverse(self, first: int, second: Step) -> None:
        """Let the thread of `second` go on before step `first`, and before its block."""
        first = self._visible(first)
        for index in dict.fromkeys((first, self._block(first))):
            able = self._places[index].able
            for key in [second.key] if second.key in able else able:
                self._turn(index, (key, 0))

    def _visible(self, index: int) -> int:
        """The step behind which the values were chosen that step `index` is the last of, if any."""
        steps = self._history.steps
        while steps[index].op.kind == ops.CHOOSE:
            index -= 1
        return index

    def _block(self, index: int) -> int:
        """Where the steps begin that the thread of step `index` has taken one behind the other."""
        key = self._history.steps[index].key
        while index:
            before = self._visible(index - 1)
            if self._history.steps[before].key != key:
                break
            index = before
        return index

    def _turn(self, index: int, turn: Turn) -> None:
        place = self._places[index]
        if turn in place.taken:
            return
        if place.cost(turn[0]) > self.within:
            self._refused = True
            return
        place.taken.add(turn)
        place.turns.append(turn)

    # -- one execution -------------------------------------------------------------------------

    def select(
        self, alive: Sequence[Thread], able: Callable[[Thread], bool], last: Thread | None
    ) -> Thread | None:
        """Which thread goes on."""
        del last
        at = self._at
        if at < self.kept:
            step = self._history.steps[at]
            self._value = step.value
            return thread_of(step.key, alive, able)
        if at == len(self._places):
            place = self._place([thread for thread in alive if able(thread)])
            if place is None:
                return None
            self._places.append(place)
        key, self._value = turn = self._places[at].turns.pop()
        if at == self.kept:
            self._first = turn
        thread = thread_of(key, alive, able)
        self._history.about(thread)
        return thread

    def _place(self, able: list[Thread]) -> _Place | None:
        """A new place; the last thread goes on, if it can, or else the first."""
        if not able:
            return None
        last = self._history.steps[self._visible(self._at - 1)].key
        spent = self._places[-1].cost(self._history.steps[-1].key)
        for thread in able:
            if thread.pending is not None and thread.pending.kind == ops.CHOOSE:
                return _Place([thread.key], 0, spent)
        keys = [thread.key for thread in able]
        return _Place(keys, last if last in keys else 0, spent)

    def choose(self, thread: Thread, n: int) -> int:
        """The value that was given before, or is to be tried; 0."""
        del thread
        return chosen(self._value, n)

    def observe(self, event: Event) -> None:
        """A step has been taken."""
        kind = event.op.kind
        if kind not in ops.LOCAL or kind == ops.CHOOSE:
            self._at += 1
            if self._at > self.kept:
                self._races.push(event)
            else:
                self._history.seen(event, self._at - 1)
        elif kind in ENDS:
            self._over = True
            self._stuck = kind == ops.DEADLOCK
        elif self._at > self.kept:
            self._history.local(event)

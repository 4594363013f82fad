"""Parsimonious optimal DPOR: every class of executions once, in polynomial space.

Abdulla, Atig, Das, Jonsson, Sagonas, "Parsimonious Optimal Dynamic Partial Order Reduction", CAV
2024.  Two executions are of one class if they differ only in the order of independent steps
(Mazurkiewicz).  Wherever an execution shows that two steps *race*, an execution is planned in which
the second one comes first: behind what comes before the first, a *plan* takes the steps that must
happen before the second, then the second, then the first.  The steps of a plan are *fixed*.

A race is reversed only if

* its first step is not fixed;
* whatever lies between the two and does not happen before the second came of itself: all that was
  moved, or chose another value, happens before the second, and goes with it.  For what does not
  go with it is done anew behind the plan, in all its orders;
* of independent steps that are moved before the same step, those that could come first are the
  first in the order of their threads.

So every plan leads to classes that no other one leads to: nothing has to be remembered of what was
explored, whoever has a plan can go on with it by himself, and no execution is begun in vain.

An *event* here is a visible step together with the local ones behind it (`ops.LOCAL`).  Waiting
as in Jonsson, Lång, Sagonas, "Awaiting for Godot", FMCAD 2022: what must have happened for a
step to be possible is ordered before it but no race; the race is with the last step before which
it was possible.  So two acquisitions of a lock race, and a release and an acquisition do not.
Threads that can never go on, and those behind a fatal finding, take part with the step that they
stand before.

A fatal step ends an execution, and what others would have done in it is done in one in which they
go on instead of it.  So a way to a fatal step, which is what happens before it, may be run more
than once, with more or fewer steps that have nothing to do with it.

What makes a step impossible is to be dependent on all else that the step depends on, as it is with
locks, cells and timers: then only the last of these steps can stand in its way.  Not so where a
thread waits for several things at once (`joint`): two independent writes may each make it wait,
and what follows both is then run behind either.  Every other class is run once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, final

from sim import ops
from sim.events import Event
from sim.strategies.fatal import Fatal
from sim.strategies.history import History
from sim.strategies.plans import WHOLE, Plan, Rest
from sim.strategies.policy import Policy
from sim.strategies.races import Races
from sim.strategies.steering import ENDS, chosen, thread_of, thread_to_try
from sim.strategies.steps import Clock, Cut, Lead, Packed, Step, join
from sim.threads import Thread

MANY: Final = 4096  # plans that are not put off until what came last has been explored


@final
class Dpor:
    """One execution of every class.

    complete  whether every class has been executed
    blocked   executions that were begun in vain, for they ended before what they were begun for
              (there are none)
    kept      how many steps the next execution has in common with the one before, the start of
              the main thread included; 0: it begins anew
    rewinds   whether whoever runs the executions goes back to those steps, and does not run them
              again
    """

    kinds = None  # sees every event

    def __init__(self, left: Packed = WHOLE) -> None:
        """Explore what is left of a search (`packed`)."""
        self.complete = False
        self.blocked = 0
        self.kept = 0
        self.rewinds = False
        self._history: Final = History()
        self._races: Final = Races(self._history)
        self._fatal: Final = Fatal(self._history, self._races)
        contended, rests = left
        self._policy: Final = Policy(self._history, contended)
        self._later: Final = [Rest.unpacked(rest) for rest in rests]
        self._plans: list[list[Plan]] = []  # by place of the current execution
        self._number = 0  # of plans there
        self._path: list[Lead] = []  # to the last of them
        self._plan = Plan([], -1)  # that the current execution follows, from `_place` on
        self._place = 0
        self._ahead: list[Lead] = []  # the steps to take from `kept` on, the plan's the last
        self._planned = 0  # where they end
        self._moved: Final[list[int]] = []  # steps of the current execution that have been moved
        self._at = 0  # steps taken in this execution
        self._value = 0  # given to the step that is being taken, if it chooses one
        self._begun = False
        self._over = False  # whether nobody could take another step
        self._stuck = False  # whether threads were left then

    @property
    def joint_waits(self) -> bool:
        """Whether a thread has waited for several things, so that classes may be run repeatedly."""
        return self._races.joint

    # -- the search ----------------------------------------------------------------------------

    def begin(self) -> bool:
        if self._begun:
            self._begun = False
            if self._number > MANY:
                self._put_off()
            self._reverse_races()
        if not self._backtrack():
            self.complete = True
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
        self._go_back(self.kept)
        self._at = 1

    def ended(self, threads: Sequence[Thread], *, fatal: bool) -> None:
        """The execution that was begun is over; `fatal`: a finding ended it."""
        self._races.ended(threads, fatal=fatal and not self._over, stuck=self._stuck)

    def _go_back(self, place: int) -> None:
        """Forget the steps behind a place, and the plans behind that of the current plan."""
        steps, moved = self._history.steps, self._moved
        while len(steps) > place:
            self._history.pop()
        while moved and moved[-1] >= place:
            moved.pop()
        del self._plans[self._place + 1 :]

    def _backtrack(self) -> bool:
        """Go back to the last place from which something is left to do."""
        if not self._number:
            if not self._later:
                return False
            self._take_up(self._later.pop())
        plans = self._plans
        place = len(plans) - 1
        while not plans[place]:
            place -= 1
        self._plan = plans[place].pop()
        self._number -= 1
        self._place = place
        self.kept = min(place, len(self._history.steps))
        self._ahead = self._path[max(self.kept, 1) - 1 : place - 1] + self._plan.leads
        self._planned = place + len(self._plan.leads)
        self._go_back(self.kept)
        return True

    # -- plans that are put off ------------------------------------------------------------------

    def _put_off(self) -> None:
        """Leave all plans for later."""
        if self._number:
            last = max(place for place, plans in enumerate(self._plans) if plans)
            self._later.append(Rest(self._history.way(last), self._plans))
            self._plans = [[] for _ in self._plans]
            self._number = 0

    def _take_up(self, rest: Rest) -> None:
        """Go on with plans that were left for later; what the way there has in common is kept."""
        steps, path = self._history.steps, rest.path
        at = 1
        while at < len(steps) and at <= len(path):
            step, lead = steps[at], path[at - 1]
            if step.key != lead.key or step.value != lead.value:
                break
            at += 1
        self._place = len(rest.plans)
        self._plans, self._path, self._number = rest.plans, path, rest.number
        self._go_back(min(at, len(steps)))
        self._moved.clear()
        for at in range(1, len(steps)):
            lead = path[at - 1]
            steps[at].lead = lead if lead.fixed else None
            self._fatal.planned(lead)
            self._fatal.instead_of(lead.but, steps[at])
            if lead.before is not None:
                self._moved.append(at)

    def take(self, left: Packed) -> None:
        """Explore what is left of some search (`packed`), too."""
        contended, rests = left
        self._policy.contended.update(contended)
        self._later.extend(Rest.unpacked(rest) for rest in rests)

    def leave(self) -> Packed:
        """What the execution that is over leads to: somebody else explores that."""
        self._begun = False
        self._put_off()
        before = len(self._later)
        self._reverse_races()
        self._put_off()
        led_to = [rest.packed() for rest in self._later[before:]]
        del self._later[before:]
        return [sorted(self._policy.contended), led_to]

    def packed(self) -> Packed:
        """What is left to do, as plain data; what has been begun and not ended, too.

        The addresses that were raced for, and plans by the paths to them (`Rest`).
        """
        rests = list(self._later)
        if self._begun:
            plans = self._plans[: self._place + 1]
            plans[self._place] = [*plans[self._place], self._plan]
            path = self._ahead[: len(self._ahead) - len(self._plan.leads)]
            rests.append(Rest(self._history.way(self.kept) + path, plans))
        return [sorted(self._policy.contended), [rest.packed() for rest in rests]]

    # -- what is to be explored, too -------------------------------------------------------------

    def _reverse_races(self) -> None:
        """Plan the other order of every race that this execution is the one to reverse."""
        steps = self._history.steps
        if len(steps) < self._planned:
            self.blocked += 1
        last = len(steps)
        others = not steps[-1].fatal or self._fatal.is_so_in_all_values()
        instead = self._fatal.others() if others else None
        if instead is not None:
            self._policy.fatal(steps[-1])
            self._add(last - 1, instead)
        for index in range(self._planned - bool(self._plan.leads), last):
            step = steps[index]
            for first in step.races:
                self._reverse(first, step, index)
            for cut in step.cuts:
                self._reverse_all(cut, step, index)
            if step.op.kind == ops.CHOOSE:
                for lead in self._fatal.otherwise(step, index):
                    self._add(index, Plan([lead], -1))
        if others and instead is None:
            for first, step in self._races.stuck_races():
                self._reverse(first, step, last)
            for step in self._races.pending:
                for cut in step.cuts:
                    self._reverse_all(cut, step, last)

    def _reverse(self, first: int, second: Step, index: int) -> None:
        """Plan `second`, at `index`, to come before step `first`."""
        steps = self._history.steps
        if steps[first].lead is None:
            self._move(first, second, index, self._races.past(first, second))

    def _reverse_all(self, cut: Cut, second: Step, index: int) -> None:
        """Plan `second`, at `index`, to come before several steps.

        As if there had been executions in which it comes before fewer and fewer of them.
        """
        steps = self._history.steps
        if all(steps[at].lead is None for at in cut.removed):
            self._move(cut.removed[-1], second, index, cut.clock[:], unsure=cut.unsure)

    def _move(
        self, first: int, second: Step, index: int, clock: Clock, *, unsure: bool = False
    ) -> None:
        """Plan `second` to come before step `first`, unless somebody else does.

        clock  what happens before `second` then
        """
        steps = self._history.steps
        step = steps[first]
        clock += [0] * (len(self._history.of) - len(clock))
        if self._fatal.known(first, second, index, clock):
            return
        leads: list[Lead] = []
        for at in range(first + 1, index):
            other = steps[at]
            lead = other.lead
            if other.time <= clock[other.number]:
                leads.append(Lead(other.key, other.value))
            elif lead is not None and lead.before is not None:
                return
        before = (step.key, step.time)
        if self._could_precede(first, second, before, clock):
            return
        values = self._fatal.values(first, index, clock)
        leads.append(Lead(second.key, 0, before, unsure=unsure, values=values))
        self._add(first, Plan(leads, step.key))
        self._policy.raced(step, second)

    def _add(self, place: int, plan: Plan) -> None:
        self._plans[place].append(plan)
        self._number += 1

    def _could_precede(
        self, first: int, second: Step, before: tuple[int, int], clock: Clock
    ) -> bool:
        """Whether `second` ought to have been moved before a step earlier than another one was.

        before  that step
        clock   what happens before `second`, without what lies before `first`
        """
        steps = self._history.steps
        least = first
        for moved in reversed(self._moved):
            if moved >= first:
                continue
            other = steps[moved]
            if other.lead is None or other.lead.before != before:
                continue
            for at in range(moved, least):
                if second.key != steps[at].key and second.meets(steps[at]):
                    join(clock, steps[at].clock)
            least = moved
            if other.time <= clock[other.number]:
                return False
            if second.key < other.key:
                return True
        return False

    # -- one execution -------------------------------------------------------------------------

    def select(
        self, alive: Sequence[Thread], able: Callable[[Thread], bool], last: Thread | None
    ) -> Thread | None:
        """Which thread goes on."""
        at = self._at
        if at < self.kept:
            step = self._history.steps[at]
            self._value = step.value
            return thread_of(step.key, alive, able)
        if at < self._planned:
            lead = self._ahead[at - max(self.kept, 1)]
            self._value = lead.value
            thread = (thread_to_try if lead.unsure else thread_of)(lead.key, alive, able)
        else:
            thread = self._unplanned(alive, able, last)
            self._value = self._fatal.first_value(thread) if thread is not None else 0
        if thread is not None:
            self._history.about(thread)
        return thread

    def _unplanned(
        self, alive: Sequence[Thread], able: Callable[[Thread], bool], last: Thread | None
    ) -> Thread | None:
        """Who goes on behind the plan."""
        if self._at != self._planned:
            return self._policy.next(alive, able, last, ())
        plan = self._plan
        if plan.then >= 0:
            for thread in alive:
                if thread.key == plan.then and able(thread):
                    return thread
        found = self._policy.next(alive, able, last, plan.but)
        if found is None and plan.but:
            self.blocked += any(map(able, alive))
        return found

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
                self._taken(event)
            else:
                self._history.seen(event, self._at - 1)
        elif kind in ENDS:
            self._over = True
            self._stuck = kind == ops.DEADLOCK
        elif self._at > self.kept:
            self._history.local(event)

    def _taken(self, event: Event) -> None:
        step = self._races.push(event)
        at = self._at - 1
        if at < self._planned:
            lead = self._ahead[at - max(self.kept, 1)]
            self._fatal.planned(lead)
            self._fatal.instead_of(lead.but, step)
            if lead.fixed:
                step.lead = lead
            if lead.before is not None:
                self._moved.append(at)
        elif at == self._planned:
            self._fatal.instead_of(self._plan.but, step)
        while len(self._plans) < at + 2:
            self._plans.append([])

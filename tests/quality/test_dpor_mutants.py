"""The tests of optimal DPOR can fail: each deliberate breakage of it is shown by a small program.

`difference` (DPOR against brute force, as in tests/sim/strategies/test_dpor.py) is tried on the
first programs of a fixed sequence, of the features at stake, or on examples.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, settings

from sim import ops
from sim.events import Event
from sim.strategies import dpor
from sim.strategies.dpor import Dpor
from sim.strategies.fatal import Fatal
from sim.strategies.history import History
from sim.strategies.joint import Joint
from sim.strategies.plans import Plan
from sim.strategies.races import Races
from sim.strategies.steps import Cut, Spot, Spots, Step, join
from tests.programs.code import Program
from tests.programs.drawing import Features, only, programs
from tests.programs.running import TooMany
from tests.sim.strategies.against_dfs import difference
from tests.sim.strategies.examples import EXAMPLES

SEARCH = settings(
    max_examples=150,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]

MEMORY = only("accesses", "atomics")
LOCKS = only("locks", "atomics")
SECTIONS = only("accesses", "sections")
FORKS = only("accesses", "forks")
WAITS = only("accesses", "waits")
MEETINGS = replace(only("accesses", "meetings"), cells=("x", "y"))
OBJECTS = only("objects")
CHECKS = only("accesses", "checks")
RISKS = only("accesses", "risks")
CPUS = only("accesses", "cpus", "hogs")

look = Races._look
note = History.note
direct = Races._direct
ended = Races.ended
new = Races._new
add = Dpor._add
taken = Dpor._taken
reverse = Dpor._reverse
could_precede = Dpor._could_precede
past = Races.past
put_off = Dpor._put_off
met = Joint.met
at = Spots.at


def unseen(kind: int) -> Mutation:
    """Steps of that kind race with no earlier step, nor come after any."""

    def mutant(self: Races, step: Step, *args: Any) -> None:
        if step.op.kind != kind:
            look(self, step, *args)

    return lambda patch: patch.setattr(Races, "_look", mutant)


def unnoted(kind: int) -> Mutation:
    """Steps of that kind race with no later step, nor come before any."""

    def mutant(self: History, step: Step, *args: Any) -> None:
        if step.op.kind != kind:
            note(self, step, *args)

    return lambda patch: patch.setattr(History, "note", mutant)


def independent(kind: int) -> Mutation:
    """Steps of that kind are independent of all."""

    def mutation(patch: Patch) -> None:
        for mutant in (unseen, unnoted):
            mutant(kind)(patch)

    return mutation


def no_overlap(patch: Patch) -> None:
    """Accesses that do not touch the same bytes exactly do not race."""

    def mutant(self: Spots, addr: int, size: int) -> Spot:
        spot = at(self, addr, size)
        spot.overlaps.clear()
        return spot

    patch.setattr(Spots, "at", mutant)


def drop_first_race(patch: Patch) -> None:
    """Of several races of a step, the first is forgotten."""

    def mutant(self: Races, racing: list[int]) -> list[int]:
        found = direct(self, racing)
        return found[1:] if len(found) > 1 else found

    patch.setattr(Races, "_direct", mutant)


def drop_last_race(patch: Patch) -> None:
    """Of several races of a step, the last is forgotten."""

    def mutant(self: Races, racing: list[int]) -> list[int]:
        found = direct(self, racing)
        return found[:-1] if len(found) > 1 else found

    patch.setattr(Races, "_direct", mutant)


def half_of_the_places(parity: int) -> Mutation:
    """At every second place no other order is tried."""

    def mutant(self: Dpor, place: int, plan: Plan) -> None:
        if place % 2 != parity:
            add(self, place, plan)

    return lambda patch: patch.setattr(Dpor, "_add", mutant)


def nothing_is_fixed(patch: Patch) -> None:
    """Races of steps that were moved, or that lead to one that was, are reversed again."""

    def mutant(self: Dpor, event: Event) -> None:
        taken(self, event)
        self._history.steps[-1].lead = None

    patch.setattr(Dpor, "_taken", mutant)


def only_what_was_moved_is_fixed(patch: Patch) -> None:
    """Races of what leads to a step that was moved are reversed again."""

    def mutant(self: Dpor, event: Event) -> None:
        taken(self, event)
        step = self._history.steps[-1]
        if step.lead is not None and step.lead.before is None:
            step.lead = None

    patch.setattr(Dpor, "_taken", mutant)


def whatever_lies_between(patch: Patch) -> None:
    """A race is reversed although something was moved in between that does not go with it."""

    def mutant(self: Dpor, first: int, second: Step, index: int) -> None:
        between = self._history.steps[first + 1 : index]
        leads = [step.lead for step in between]
        for step in between:
            step.lead = None
        reverse(self, first, second, index)
        for step, lead in zip(between, leads, strict=True):
            step.lead = lead

    patch.setattr(Dpor, "_reverse", mutant)


def nothing_lies_between(patch: Patch) -> None:
    """A race is reversed only if nothing was moved in between, whether it goes with it or not."""

    def mutant(self: Dpor, first: int, second: Step, index: int) -> None:
        if not any(step.lead for step in self._history.steps[first + 1 : index]):
            reverse(self, first, second, index)

    patch.setattr(Dpor, "_reverse", mutant)


def in_any_order(patch: Patch) -> None:
    """Independent steps are moved before the same one in every order."""
    patch.setattr(Dpor, "_could_precede", lambda *_: False)


def one_only(patch: Patch) -> None:
    """No two steps are moved before the same one."""

    def mutant(self: Dpor, first: int, second: Step, before: Any, clock: Any) -> bool:
        leads = [self._history.steps[at].lead for at in self._moved if at < first]
        return any(lead is not None and lead.before == before for lead in leads)

    patch.setattr(Dpor, "_could_precede", mutant)


def without_what_leads_there(patch: Patch) -> None:
    """Of the steps that have to come before the reversed one, none is planned."""
    patch.setattr(Races, "past", lambda self, *_: [0] * len(self._history.of))


def with_what_does_not_lead_there(patch: Patch) -> None:
    """All that is not ordered after the first step comes with the second."""

    def mutant(self: Races, first: int, second: Step) -> Any:
        clock = past(self, first, second)
        for at in range(first + 1, len(self._history.steps)):
            step = self._history.steps[at]
            if step is second:
                break
            if not self._history.is_after(first, at):
                clock[step.number] = max(clock[step.number], step.time)
        return clock

    patch.setattr(Races, "past", mutant)


def what_made_it_possible(patch: Patch) -> None:
    """What had to happen before the second step comes with it, without the first step, too."""

    def mutant(self: Races, first: int, second: Step) -> Any:
        clock = past(self, first, second)
        for at in second.needs:
            join(clock, self._history.steps[at].clock)
        return clock

    patch.setattr(Races, "past", mutant)


def whoever_goes_on(patch: Patch) -> None:
    """Behind a plan, it is not the step that was waiting that comes next."""

    def mutant(self: Dpor, alive: Any, able: Any, last: Any) -> Any:
        but = self._plan.but if self._at == self._planned else ()
        return self._policy.next(alive, able, last, but)

    patch.setattr(Dpor, "_unplanned", mutant)


def forgotten_plans(patch: Patch) -> None:
    """Plans that have been put off are forgotten."""

    def mutant(self: Dpor) -> None:
        put_off(self)
        self._later.clear()

    patch.setattr(dpor, "MANY", 1)
    patch.setattr(Dpor, "_put_off", mutant)


def release_races(patch: Patch) -> None:
    """An acquisition races with the release that made it possible."""
    patch.setattr(Races, "_possible", lambda self, *args: None)


def waits_race(patch: Patch) -> None:
    """A wait races with no write: it comes after those that made its predicate hold."""

    def mutant(self: Races, step: Step, clock: Any, racing: list[int], *rest: Any) -> None:
        wait(self, step, clock, [], *rest)

    wait = Races._wait
    patch.setattr(Races, "_wait", mutant)


def waits_for_several_race(*, least: int) -> Mutation:
    """A wait for several cells comes before fewer writes at once than it has to, or before none."""

    def mutation(patch: Patch) -> None:
        def mutant(*args: Any) -> list[Cut]:
            return [cut for cut in cuts(*args) if len(cut.removed) < least]

        cuts = Joint.cuts
        patch.setattr(Joint, "cuts", mutant)

    return mutation


def without_what_frees(self: Joint, step: Step, clock: Any) -> list[int]:
    """A step that others have kept off its CPU does not come after those that left it."""
    return [at for at in met(self, step, clock) if not self._history.steps[at].frees]


def with_what_it_comes_before(patch: Patch) -> None:
    """A wait for several cells takes along what it is to come before."""

    def mutant(self: Joint, step: Step, clock: Any, removed: tuple[int, ...]) -> Any:
        clock = without(self, step, clock, removed)
        for one in removed:
            join(clock, self._history.steps[one].clock)
        return clock

    without = Joint._clock
    patch.setattr(Joint, "_clock", mutant)


def without_what_it_needs(patch: Patch) -> None:
    """A wait for several cells takes along nothing of what made it possible."""
    patch.setattr(Joint, "_clock", lambda _self, _step, clock, _removed: clock[:])


def no_pending_races(patch: Patch) -> None:
    """What stuck threads stand before races with nothing."""

    def mutant(self: Races) -> Iterator[tuple[int, Step]]:
        return iter(())

    patch.setattr(Races, "stuck_races", mutant)


def first_choices(patch: Patch) -> None:
    """Only the first value is ever chosen."""
    patch.setattr(Fatal, "otherwise", lambda *_: [])


def not_fatal(patch: Patch) -> None:
    """A finding that ends an execution is like any other step."""

    def mutant(self: Races, threads: Sequence[Any], *, fatal: bool, stuck: bool) -> None:
        del fatal
        ended(self, threads, fatal=False, stuck=stuck)

    patch.setattr(Races, "ended", mutant)


def nobody_goes_on_instead(patch: Patch) -> None:
    """Where a finding ends an execution, nobody else is tried."""
    patch.setattr(Fatal, "others", lambda _: None)


def known_whatever_led_there(patch: Patch) -> None:
    """A fatal step has been taken, although other steps lead to it now."""

    def mutant(self: Fatal, first: int, second: Step, *_: Any) -> bool:
        del first
        return any(second.key in step.but for step in self._history.steps)

    patch.setattr(Fatal, "known", mutant)


def others_at_once(patch: Patch) -> None:
    """Others go on instead of a choice that is fatal, though with another value it may not be."""

    def mutant(self: Fatal) -> bool:
        return self._history.steps[-1].lead is None

    patch.setattr(Fatal, "is_so_in_all_values", mutant)


def races_with_the_past(patch: Patch) -> None:
    """Steps that are ordered race, too."""

    def mutant(self: Races, step: Step, clock: Any, found: list[int], others: Any) -> None:
        new(self, step, [0] * len(clock), found, others)

    patch.setattr(Races, "_new", mutant)


def grace_periods_unordered(patch: Patch) -> None:
    """A grace period does not end after the sections that it waited for."""
    patch.setattr(Races, "_ended", lambda self, op: iter(()))


#: With the features of the programs that are tried; None: the examples.
MUTANTS: dict[str, tuple[Mutation, Features | None]] = {
    "loads are independent": (independent(ops.LOAD), MEMORY),
    "stores are independent": (independent(ops.STORE), MEMORY),
    "cmpxchg is independent": (independent(ops.CMPXCHG), MEMORY),
    "locks are independent": (independent(ops.LOCK), LOCKS),
    "trylocks are independent": (independent(ops.TRYLOCK), LOCKS),
    "frees are independent": (independent(ops.FREE), OBJECTS),
    "waits are independent": (independent(ops.WAIT), WAITS),
    "sections are independent": (independent(ops.SECTION_BEGIN), SECTIONS),
    "grace periods are independent": (independent(ops.GP_START), SECTIONS),
    "sleeping is independent": (independent(ops.SLEEP), only("accesses", "time")),
    "arming is independent": (independent(ops.ARM), only("accesses", "time")),
    "arming races with nothing after": (unnoted(ops.ARM), only("accesses", "time")),
    "loads race with nothing before": (unseen(ops.LOAD), MEMORY),
    "stores race with nothing after": (unnoted(ops.STORE), MEMORY),
    "sections race with nothing before": (unseen(ops.SECTION_BEGIN), SECTIONS),
    "nothing meets": (lambda patch: patch.setattr(Step, "meets", lambda *_: False), MEMORY),
    "everything meets": (lambda patch: patch.setattr(Step, "meets", lambda *_: True), MEMORY),
    "bytes that overlap": (no_overlap, only("regions")),
    "joins come after nothing": (unseen(ops.JOIN), FORKS),
    "grace periods come after nothing": (grace_periods_unordered, None),
    "the first of several races": (drop_first_race, MEMORY),
    "the last of several races": (drop_last_race, MEMORY),
    "races with what is ordered": (races_with_the_past, FORKS),
    "even places": (half_of_the_places(0), MEMORY),
    "odd places": (half_of_the_places(1), MEMORY),
    "nothing is fixed": (nothing_is_fixed, MEMORY),
    "only what was moved is fixed": (only_what_was_moved_is_fixed, MEMORY),
    "whatever lies between": (whatever_lies_between, MEMORY),
    "nothing lies between": (nothing_lies_between, MEMORY),
    "in any order": (in_any_order, MEMORY),
    "one only": (one_only, MEMORY),
    "without what leads there": (without_what_leads_there, MEMORY),
    "with what does not lead there": (with_what_does_not_lead_there, None),
    "what made it possible": (what_made_it_possible, LOCKS),
    "whoever goes on": (whoever_goes_on, None),
    "forgotten plans": (forgotten_plans, MEMORY),
    "an acquisition races with a release": (release_races, LOCKS),
    "waits race with nothing": (waits_race, WAITS),
    "waits for several cells race with nothing": (waits_for_several_race(least=1), MEETINGS),
    "waits for several cells race with one": (waits_for_several_race(least=2), None),
    "with what it comes before": (with_what_it_comes_before, None),
    "without what it needs": (without_what_it_needs, None),
    "threads that are stuck": (no_pending_races, None),
    "alternatives of choices": (first_choices, only("accesses", "choices")),
    "a CPU is always free": (
        lambda patch: patch.setattr(History, "holder", lambda *_: -1),
        CPUS,
    ),
    "CPUs are left at no step": (
        lambda patch: patch.setattr(Joint, "met", without_what_frees),
        CPUS,
    ),
    "choices need a CPU": (
        lambda patch: patch.setattr(ops, "OFF_CPU", frozenset({ops.SLEEP})),
        only("waits", "choices", "cpus", "hogs"),
    ),
    "what is kept off a CPU races with nothing": (waits_for_several_race(least=1), CPUS),
    "fatal findings": (not_fatal, CHECKS),
    "nobody goes on instead": (nobody_goes_on_instead, CHECKS),
    "known whatever led there": (known_whatever_led_there, CHECKS),
    "others at once": (others_at_once, RISKS),
    "fatal choices are the end": (
        lambda patch: patch.setattr(Fatal, "is_so_in_all_values", lambda _: False),
        RISKS,
    ),
    "values of another choice": (
        lambda patch: patch.setattr(Fatal, "_stays", lambda *_: True),
        None,
    ),
    "ways that are taken again": (
        lambda patch: patch.setattr(Fatal, "known", lambda *_: False),
        None,
    ),
}


def noticed(program: Program) -> bool:
    """Whether the search differs from brute force, on this program."""
    try:
        return difference(program) != ""
    except TooMany:
        return False


@pytest.mark.parametrize("name", MUTANTS)
def test_brute_force_shows_what_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation, features = MUTANTS[name]
    mutation(monkeypatch)
    if features is None:
        program = next(it for it in EXAMPLES.values() if noticed(it))
    else:
        drawn = programs(features, threads=(2, 3), length=3, weight=6)
        program = find(drawn, noticed, settings=SEARCH, random=Random(1))

    monkeypatch.undo()
    assert not noticed(program)

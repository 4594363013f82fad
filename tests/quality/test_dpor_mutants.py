"""The tests of optimal DPOR can fail: each deliberate breakage of it is shown by a small program.

`difference` (DPOR against brute force, as in tests/sim/strategies/test_dpor.py) is tried on the
first programs of a fixed sequence, of the features at stake, or on examples.
"""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, settings

from sim import ops
from sim.strategies.dpor import Dpor
from sim.strategies.history import History
from sim.strategies.races import Races
from sim.strategies.steps import Spot, Spots, Step
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
OBJECTS = only("objects")

meets = Step.meets
look = Races._look
note = History.note
direct = Races._direct
ended = Races.ended
new = Races._new
insert = Dpor._insert
at = Spots.at


def asleep_only(kind: int) -> Mutation:
    """Steps of that kind wake nobody and are woken by nobody."""

    def mutant(self: Step, other: Step) -> bool:
        return kind not in (self.op.kind, other.op.kind) and meets(self, other)

    return lambda patch: patch.setattr(Step, "meets", mutant)


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
        for mutant in (asleep_only, unseen, unnoted):
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


def never_asleep(patch: Patch) -> None:
    """What sleeps is explored again."""

    def mutant(self: Dpor, index: int, last: Step) -> None:
        place = self._places[index]
        kept, place.sleeping = place.sleeping, []
        try:
            insert(self, index, last)
        finally:
            place.sleeping = kept

    patch.setattr(Dpor, "_insert", mutant)


def all_asleep(patch: Patch) -> None:
    """Where something sleeps, nothing is added."""

    def mutant(self: Dpor, index: int, last: Step) -> None:
        if not self._places[index].sleeping:
            insert(self, index, last)

    patch.setattr(Dpor, "_insert", mutant)


def half_of_the_places(parity: int) -> Mutation:
    """At every second place no other order is tried."""

    def mutant(self: Dpor, index: int, last: Step) -> None:
        if index % 2 != parity:
            insert(self, index, last)

    return lambda patch: patch.setattr(Dpor, "_insert", mutant)


def without_what_leads_there(patch: Patch) -> None:
    """Of the steps that have to come before the reversed one, none is put into the tree."""
    patch.setattr(History, "after", lambda self, index: [])


def release_races(patch: Patch) -> None:
    """An acquisition races with the release that made it possible."""
    patch.setattr(Races, "_possible", lambda self, *args: None)


def waits_race(patch: Patch) -> None:
    """A wait races with no write: it comes after those that made its predicate hold."""

    def mutant(self: Races, step: Step, clock: Any, racing: list[int], *rest: Any) -> None:
        wait(self, step, clock, [], *rest)

    wait = Races._wait
    patch.setattr(Races, "_wait", mutant)


def no_pending_races(patch: Patch) -> None:
    """What stuck threads stand before races with nothing."""

    def mutant(self: Races) -> Iterator[tuple[int, Step]]:
        return iter(())

    patch.setattr(Races, "pending_races", mutant)


def first_choices(patch: Patch) -> None:
    """Only the first value is ever chosen."""

    def mutant(self: Dpor, index: int, last: Step) -> None:
        if last.op.kind != ops.CHOOSE:
            insert(self, index, last)

    patch.setattr(Dpor, "_insert", mutant)


def not_fatal(patch: Patch) -> None:
    """A finding that ends an execution is like any other step."""

    def mutant(self: Races, threads: Sequence[Any], *, fatal: bool, stuck: bool) -> None:
        del fatal
        ended(self, threads, fatal=False, stuck=stuck)

    patch.setattr(Races, "ended", mutant)


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
    "loads race with nothing before": (unseen(ops.LOAD), MEMORY),
    "stores race with nothing after": (unnoted(ops.STORE), MEMORY),
    "sections race with nothing before": (unseen(ops.SECTION_BEGIN), SECTIONS),
    "loads do not wake": (asleep_only(ops.LOAD), MEMORY),
    "locks do not wake": (asleep_only(ops.LOCK), LOCKS),
    "grace periods do not wake": (asleep_only(ops.GP_START), SECTIONS),
    "nothing wakes": (lambda patch: patch.setattr(Step, "meets", lambda *_: False), MEMORY),
    "everything wakes": (lambda patch: patch.setattr(Step, "meets", lambda *_: True), MEMORY),
    "bytes that overlap": (no_overlap, only("regions")),
    "joins come after nothing": (unseen(ops.JOIN), FORKS),
    "grace periods come after nothing": (grace_periods_unordered, None),
    "the first of several races": (drop_first_race, MEMORY),
    "the last of several races": (drop_last_race, MEMORY),
    "races with what is ordered": (races_with_the_past, FORKS),
    "nothing sleeps": (never_asleep, MEMORY),
    "all sleeps": (all_asleep, MEMORY),
    "even places": (half_of_the_places(0), MEMORY),
    "odd places": (half_of_the_places(1), MEMORY),
    "reversals without what leads there": (without_what_leads_there, MEMORY),
    "an acquisition races with a release": (release_races, LOCKS),
    "waits race with nothing": (waits_race, WAITS),
    "threads that are stuck": (no_pending_races, None),
    "alternatives of choices": (first_choices, only("accesses", "choices")),
    "fatal findings": (not_fatal, OBJECTS),
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

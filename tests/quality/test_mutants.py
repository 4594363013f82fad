"""The checkers can fail: for each deliberate breakage they find a counterexample.

A property test is worth what it can find.  Here `dependent` calls steps independent that are
not, `LOCAL` holds kinds that it must not, and happens-before forgets an edge; programs of the
features at stake then have to show it.
"""

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st

from sim import ops
from sim.detectors.happens_before import HappensBefore
from sim.ops import Op
from tests.programs.drawing import Features, only, programs
from tests.sim.detectors.oracle import difference
from tests.sim.swapping import local_counterexample, swap_counterexample

SEARCH = settings(
    max_examples=3000,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

Dependent = Callable[..., bool]
dependent = ops.dependent

CELLS = only("accesses")
ATOMICS = only("atomics")
LOCKS = only("locks", "accesses")
SECTIONS = only("sections")
CPUS = only("accesses", "cpus")


def pair(a: int, b: int) -> Dependent:
    """A step of kind `a` and one of kind `b` are said to be independent."""

    def mutant(x: Op[Any], y: Op[Any], *, same_cpu: bool = False) -> bool:
        return {x.kind, y.kind} != {a, b} and dependent(x, y, same_cpu=same_cpu)

    return mutant


def every(kind: int) -> Dependent:
    """A step of that kind is said to be independent of all others."""

    def mutant(x: Op[Any], y: Op[Any], *, same_cpu: bool = False) -> bool:
        return kind not in (x.kind, y.kind) and dependent(x, y, same_cpu=same_cpu)

    return mutant


def no_cpus(x: Op[Any], y: Op[Any], *, same_cpu: bool = False) -> bool:
    del same_cpu
    return dependent(x, y)


def same_address(x: Op[Any], y: Op[Any], *, same_cpu: bool = False) -> bool:
    """Accesses that overlap but do not begin at the same address are said to be independent."""
    both = x.kind in ops.MEMORY and y.kind in ops.MEMORY
    return dependent(x, y, same_cpu=same_cpu) and (not both or x.addr == y.addr)


DEPENDENT: dict[str, tuple[Dependent, Features]] = {
    "load and store": (pair(ops.LOAD, ops.STORE), CELLS),
    "two stores": (pair(ops.STORE, ops.STORE), CELLS),
    "xchg": (every(ops.XCHG), ATOMICS),
    "cmpxchg": (every(ops.CMPXCHG), ATOMICS),
    "two atomic additions": (pair(ops.RMW, ops.RMW), ATOMICS),
    "parts of a word": (same_address, only("regions")),
    "two locks": (pair(ops.LOCK, ops.LOCK), LOCKS),
    "trylock": (every(ops.TRYLOCK), LOCKS),
    "unlock and trylock": (pair(ops.UNLOCK, ops.TRYLOCK), LOCKS),
    "unlock and lock": (pair(ops.UNLOCK, ops.LOCK), LOCKS),
    "section and grace period": (pair(ops.SECTION_BEGIN, ops.GP_START), SECTIONS),
    "ends of section and grace period": (pair(ops.SECTION_END, ops.GP_END), SECTIONS),
    "free": (every(ops.FREE), only("objects")),
    "wait_until": (every(ops.WAIT), only("accesses", "waits")),
    "join": (every(ops.JOIN), only("accesses", "forks")),
    "sharing a CPU": (no_cpus, CPUS),
    "time and sleep": (pair(ops.CLOCK, ops.SLEEP), only("time")),
    "arming and sleep": (pair(ops.ARM, ops.SLEEP), only("time")),
    "two sleeps": (pair(ops.SLEEP, ops.SLEEP), only("time")),
}

LOCAL: dict[str, tuple[int, Features]] = {
    "load": (ops.LOAD, CELLS),
    "store": (ops.STORE, CELLS),
    "unlock": (ops.UNLOCK, LOCKS),
    "trylock": (ops.TRYLOCK, LOCKS),
    "beginning a section": (ops.SECTION_BEGIN, SECTIONS),
    "starting a grace period": (ops.GP_START, SECTIONS),
    "holding a CPU": (ops.CPU_HOLD, CPUS),
    "reading the clock": (ops.CLOCK, only("time")),
    "arming a timer": (ops.ARM, only("time")),
}


ORDER: dict[str, Features] = {
    "_store": CELLS,
    "_rmw": ATOMICS,
    "_take": LOCKS,
    "_wait": only("accesses", "waits"),
    "_join": only("accesses", "forks"),
    "_fence_step": only("accesses", "fences"),
    "_cpu_hold": CPUS,
    "_cpu_release": CPUS,
    "_section_begin": SECTIONS,
    "_section_end": SECTIONS,
    "_gp_start": SECTIONS,
    "_gp_end": SECTIONS,
}

RARE = ("free", "unlock", "holding a CPU")  # many programs are tried until one shows it


def marked(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in RARE)) for name in names]


@pytest.mark.parametrize("name", marked(DEPENDENT))
def test_swapping_finds_what_is_wrongly_independent(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant, features = DEPENDENT[name]
    monkeypatch.setattr(ops, "dependent", mutant)
    drawn = st.tuples(programs(features, threads=(2, 2)), st.integers(0, 9))

    program, seed = find(
        drawn, lambda it: bool(swap_counterexample(*it)), settings=SEARCH, random=Random(1)
    )

    monkeypatch.undo()
    assert swap_counterexample(program, seed) == ""


@pytest.mark.parametrize("name", marked(LOCAL))
def test_exploring_finds_what_is_wrongly_performed_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, features = LOCAL[name]
    monkeypatch.setattr(ops, "LOCAL", ops.LOCAL | {kind})
    drawn = programs(features, threads=(2, 2), length=2, weight=5)

    program = find(
        drawn, lambda it: bool(local_counterexample(it)), settings=SEARCH, random=Random(1)
    )

    monkeypatch.undo()
    assert local_counterexample(program) == ""


@pytest.mark.parametrize("name", ORDER)
def test_the_definition_shows_a_forgotten_edge(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HappensBefore, name, lambda self, index, event: None)
    drawn = st.tuples(programs(ORDER[name]), st.integers(0, 9))

    program, seed = find(drawn, lambda it: bool(difference(*it)), settings=SEARCH, random=Random(1))

    monkeypatch.undo()
    assert difference(program, seed) == ""

"""Programs that the random ones of these tests do not contain: optimal DPOR against brute force.

Run as `rcusim explore` does, that is, going back instead of starting anew, and with the choices
that lead to what is found: the same verdicts, findings and outcomes.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from sim.cells import Bytes, Cell, Struct, cell
from sim.explore import Budget, Explorer, Result
from sim.macros import (
    READ_ONCE,
    WRITE_ONCE,
    alloc,
    choose,
    cpu_relax,
    free,
    load,
    lock,
    note,
    outcome,
    rmw_at,
    smp_load_acquire,
    smp_store_release,
    store,
    unlock,
    wait_until,
)
from sim.memory import Memory
from sim.strategies.dfs import Dfs
from sim.strategies.dpor import Dpor
from sim.strategies.joint import Joint
from sim.strategies.steps import Clock, Step
from sim.threads import Body, Thread, spawn
from sim.totals import Totals
from sim.workload import Program, workload

Code = Callable[["Shared"], Body]


class Shared(Struct):
    """What the threads share."""

    x: Cell[int] = cell(0)
    y: Cell[int] = cell(0)
    lock: Cell[Thread | None] = cell(None)
    data: Bytes

    def __init__(self) -> None:
        self.add_bytes("data", 8)


def program(*threads: Code) -> Program:
    @workload()
    async def by_hand(_memory: Memory) -> None:
        shared = await alloc(Shared)
        for nth, code in enumerate(threads):
            await spawn(code, shared, name=f"t{nth}")

    return by_hand.prepare({})


def searched(program: Program, strategy: Dpor | Dfs) -> Result:
    """All that there is to find."""
    totals = Totals(Budget(), optimal=isinstance(strategy, Dpor), keep_going=True)
    return Explorer(program, strategy, Budget(), totals=totals).explore()


def bug(value: int) -> Awaitable[None]:
    return note("BUG", value)


async def writes_half(shared: Shared) -> None:
    await WRITE_ONCE(shared.data.word(0, 4), 1)


async def waits_for_whole(shared: Shared) -> None:
    (value,) = await wait_until(lambda value: value in (0, 1), shared.data.word(0, 8))
    if value == 0:
        await bug(value)


async def adds_by_address(shared: Shared) -> None:
    await rmw_at(shared.x.addr, 8, "add", 1, "xadd")


async def waits_for_cell(shared: Shared) -> None:
    (value,) = await wait_until(lambda value: value in (0, 1), shared.x)
    if value == 0:
        await bug(value)


async def spins(shared: Shared) -> None:
    while (value := await READ_ONCE(shared.x)) == 0:
        await cpu_relax(shared.x, value)
    await outcome(value)


async def frees(shared: Shared) -> None:
    await free(shared)


async def locks_and_frees(shared: Shared) -> None:
    await lock(shared.lock)
    await free(shared)


async def locks(shared: Shared) -> None:
    await lock(shared.lock)
    await unlock(shared.lock)


async def stores_and_acquires(shared: Shared) -> None:
    await WRITE_ONCE(shared.y, 1)
    await outcome(await smp_load_acquire(shared.x))


async def reads_and_forks(shared: Shared) -> None:
    await outcome(await READ_ONCE(shared.y))
    await spawn(releases, shared, name="child")


async def releases(shared: Shared) -> None:
    await smp_store_release(shared.x, 1)


async def stores_and_fails(shared: Shared) -> None:
    await WRITE_ONCE(shared.x, 1)
    await bug(1)


async def chooses(_shared: Shared) -> None:
    await outcome(await choose(3))


async def fails_perhaps(shared: Shared) -> None:
    if await choose(2) == 0:
        await bug(0)
    await WRITE_ONCE(shared.x, 1)


async def adds_and_stores(shared: Shared) -> None:
    await rmw_at(shared.data.addr, 8, "add", 1, "atomic_inc")
    await smp_store_release(shared.data.word(0, 8), 2)


async def waits_for_byte(shared: Shared) -> None:
    await wait_until(lambda value: value > 0, shared.data.word(0, 1))


async def stores_word(shared: Shared) -> None:
    await store(shared.data.word(0, 8), 2)


async def adds_to_half(shared: Shared) -> None:
    await rmw_at(shared.data.addr + 4, 4, "add", 1, "add")


async def loads_byte(shared: Shared) -> None:
    await load(shared.data.word(6, 1))


PROGRAMS: dict[str, tuple[Code, ...]] = {
    "a wait for a byte of what is written twice": (adds_and_stores, waits_for_byte),
    "races of bytes that overlap": (stores_word, adds_to_half, loads_byte),
    "a wait for what is written in part": (writes_half, waits_for_whole),
    "a wait for what is written by address": (adds_by_address, waits_for_cell),
    "a wait for what is written by address, twice": (
        adds_by_address,
        adds_by_address,
        waits_for_cell,
    ),
    "spinning on what is written by address": (adds_by_address, spins),
    "a wait for what is freed": (frees, waits_for_cell),
    "a lock that its holder frees": (locks_and_frees, locks),
    "a lock that somebody else frees": (frees, locks),
    "forks that are taken back": (stores_and_acquires, reads_and_forks),
    "a choice that was not made before the end": (stores_and_fails, chooses),
    "choices that are fatal": (fails_perhaps, fails_perhaps, fails_perhaps),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_explored_as_by_brute_force(name: str) -> None:
    made = program(*PROGRAMS[name])
    wanted, found = searched(made, Dfs()), searched(made, Dpor())

    assert found.complete
    assert found.verdict == wanted.verdict
    assert {it.finding.key for it in found.findings} == {it.finding.key for it in wanted.findings}
    assert found.outcomes.keys() == wanted.outcomes.keys()


@pytest.mark.parametrize(("threads", "executions"), [(1, 2), (2, 4), (3, 9), (4, 29), (5, 127)])
def test_choices_that_are_fatal_are_tried_once(threads: int, executions: int) -> None:
    """One way for each thread, and n! orders of the stores; from four on, ways taken again."""
    result = searched(program(*[fails_perhaps] * threads), Dpor())

    assert result.complete
    assert result.executions == executions


def test_a_finding_is_kept_though_another_thread_has_not_chosen() -> None:
    result = searched(program(stores_and_fails, chooses), Dpor())

    assert [found.finding.threads for found in result.findings] == [("t0",)]
    assert result.findings[0].choices


def only_whole_cells(self: Joint, step: Step, clock: Clock) -> list[int]:
    places = {(spot.addr, spot.addr + spot.size) for spot in self._spots}
    steps = self._history.steps
    return [at for at in writes(self, step, clock) if (steps[at].start, steps[at].end) in places]


def always_known(_self: Joint, _writes: Sequence[int]) -> bool:
    return True


writes = Joint.writes


@pytest.mark.parametrize(
    ("name", "method", "mutant"),
    [
        ("a wait for what is written by address", "is_plain", always_known),
        ("a wait for what is written in part", "writes", only_whole_cells),
        ("a wait for what is freed", "writes", only_whole_cells),
    ],
)
def test_what_is_not_known_of_a_write_matters(
    name: str, method: str, mutant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = program(*PROGRAMS[name])
    wanted = searched(made, Dfs())
    monkeypatch.setattr(Joint, method, mutant)

    assert len(searched(made, Dpor()).findings) < len(wanted.findings)

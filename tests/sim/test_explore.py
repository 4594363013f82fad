"""Verdicts are honest, budgets hold, predictions are pursued."""

import gc
import math
import warnings
from types import ModuleType

import pytest

from sim import revival, threads
from sim.cells import Cell, Struct, cell
from sim.cpu import Cpu
from sim.errors import MisuseError, NondeterminismError
from sim.explore import Budget, Explorer, Found, Result, check_determinism
from sim.macros import (
    READ_ONCE,
    WRITE_ONCE,
    alloc,
    choose,
    cpu_hold,
    cpu_release,
    free,
    join,
    load,
    note,
    outcome,
    store,
    wait_until,
)
from sim.memory import Memory
from sim.run import Rewound
from sim.strategies.bounded import Bounded
from sim.strategies.dfs import Dfs
from sim.strategies.dpor import Dpor
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.threads import spawn
from sim.workload import Program, Workload, find, workload


class Shared(Struct):
    """What the threads of these tests share."""

    flag: Cell[int] = cell(0)
    pointer: Cell[Struct | None] = cell(None)


def explore(made: Workload, strategy: object = None, budget: Budget | None = None) -> Result:
    program = made.prepare({})
    explorer = Explorer(program, strategy or Dfs(), budget or Budget())  # type: ignore[arg-type]
    return explorer.explore()


@workload()
async def lucky(memory: Memory) -> None:
    """A use-after-free that only one of many interleavings shows."""
    shared = memory.static(Shared)
    victim = await alloc(Shared)

    async def user() -> None:
        await load(victim.flag)

    async def owner() -> None:
        for _ in range(20):
            await READ_ONCE(shared.flag)
        await free(victim)

    threads = [await spawn(user, name="user"), await spawn(owner, name="owner")]
    for thread in threads:
        await join(thread)


@workload()
async def endless(memory: Memory) -> None:
    shared = memory.static(Shared)
    while True:
        await READ_ONCE(shared.flag)


@workload()
async def quiet(memory: Memory) -> None:
    shared = memory.static(Shared)

    async def writer(value: int) -> None:
        await WRITE_ONCE(shared.flag, value)

    threads = [await spawn(writer, value, name=f"writer{value}") for value in (1, 2)]
    for thread in threads:
        await join(thread)
    await outcome(await READ_ONCE(shared.flag))


def test_a_complete_search_without_findings_is_a_proof() -> None:
    result = explore(quiet)

    assert result.verdict == "proved"
    assert result.complete
    assert set(result.outcomes) == {(1,), (2,)}


@pytest.mark.parametrize(
    ("cpus", "waits", "verdict"),
    [(1, True, "inconclusive"), (1, False, "proved"), (2, True, "proved"), (2, False, "proved")],
)
def test_a_search_is_no_proof_where_a_thread_waits_on_a_shared_cpu(
    cpus: int, waits: bool, verdict: str
) -> None:
    @workload()
    async def sharing(memory: Memory) -> None:
        shared = memory.static(Shared)
        places = [memory.static(Cpu, number) for number in range(cpus)]

        async def writer(cpu: Cpu) -> None:
            await cpu_hold(cpu, "preempt_disable")
            await WRITE_ONCE(shared.flag, 1)
            if waits:
                await wait_until(bool, shared.flag)
            await cpu_release(cpu, "preempt_enable")

        for nth in range(2):
            cpu = places[nth % cpus]
            await spawn(writer, cpu, name=f"writer{nth}", cpu=cpu)

    result = explore(sharing)

    assert result.complete
    assert result.verdict == verdict


def test_a_complete_bounded_search_is_no_proof() -> None:
    result = explore(quiet, Dfs(bound=1))

    assert result.complete
    assert result.verdict == "inconclusive"


@workload()
async def needs_a_preemption(memory: Memory) -> None:
    shared = memory.static(Shared)

    async def writer() -> None:
        await WRITE_ONCE(shared.flag, 1)
        await WRITE_ONCE(shared.flag, 0)

    async def reader() -> None:
        if await READ_ONCE(shared.flag):
            await note("BUG", "the flag is set")

    await spawn(writer, name="writer")
    await spawn(reader, name="reader")


def test_bounds_are_searched_in_turn_and_a_finding_says_within_which() -> None:
    result = explore(needs_a_preemption, Bounded(2))

    assert [(found.finding.kind, found.within) for found in result.findings] == [("kernel-bug", 1)]
    assert result.bound == 2
    assert result.finished == 0


def test_a_complete_search_of_bounds_in_turn_is_no_proof() -> None:
    result = explore(quiet, Bounded(1))

    assert (result.complete, result.finished) == (True, 1)
    assert result.verdict == "inconclusive"


@pytest.mark.parametrize("strategy", [RandomWalk(0), Pct(0)])
def test_sampling_is_no_proof(strategy: object) -> None:
    result = explore(quiet, strategy, Budget(executions=100))

    assert result.verdict == "inconclusive"
    assert result.executions == 100
    assert "100 executions" in result.stopped


def test_an_execution_cut_at_its_budget_of_steps_spoils_the_proof() -> None:
    result = explore(endless, Dfs(), Budget(steps=50))

    assert result.cut == 1
    assert result.verdict == "inconclusive"


def test_the_duration_is_checked_after_every_execution() -> None:
    result = explore(quiet, RandomWalk(0), Budget(seconds=0.0))

    assert result.executions == 1
    assert result.verdict == "inconclusive"


def test_a_predicted_use_after_free_is_searched_for_and_witnessed() -> None:
    result = explore(lucky, RandomWalk(0), Budget(executions=1000))

    assert [f.finding.kind for f in result.findings] == ["use-after-free"]
    assert result.findings[0].directed
    assert result.executions <= 3


def test_a_prediction_that_cannot_be_witnessed_decides_nothing() -> None:
    @workload()
    async def ordered_by_the_scheduler(memory: Memory) -> None:
        """The free waits for a relaxed flag: no synchronisation, but it never comes first."""
        shared = memory.static(Shared)
        victim = await alloc(Shared)

        async def user() -> None:
            await load(victim.flag)
            await WRITE_ONCE(shared.flag, 1)

        async def owner() -> None:
            while not await READ_ONCE(shared.flag):
                pass
            await free(victim)

        threads = [await spawn(user, name="user"), await spawn(owner, name="owner")]
        for thread in threads:
            await join(thread)

    result = explore(ordered_by_the_scheduler, RandomWalk(1), Budget(executions=20, steps=200))

    assert result.verdict == "inconclusive"
    assert result.findings == []
    assert result.predicted == ["use-after-free of a Shared by user, freed by owner"]


def test_keep_going_counts_a_finding_once() -> None:
    traces: list[Found] = []

    def on_found(found: Found) -> str:
        traces.append(found)
        return "here"

    explorer = Explorer(
        lucky.prepare({}),
        RandomWalk(0),
        Budget(executions=200),
        keep_going=True,
        on_found=on_found,
    )
    result = explorer.explore()

    assert result.executions >= 200
    assert len(traces) == len(result.findings) == 1
    assert result.findings[0].trace == "here"


def test_what_changes_between_runs_is_named() -> None:
    state = iter(range(100))

    @workload()
    async def moody(memory: Memory) -> None:
        shared = memory.static(Shared)
        await WRITE_ONCE(shared.flag, 7)
        if next(state) % 2:
            await READ_ONCE(shared.flag)
        await WRITE_ONCE(shared.flag, 8)

    with pytest.raises(NondeterminismError, match="at step 1 thread main did READ_ONCE"):
        check_determinism(moody.prepare({}), RandomWalk(0), Budget())


def test_a_forgotten_await_is_named_before_the_search_begins() -> None:
    @workload()
    async def forgetful(memory: Memory) -> None:
        shared = memory.static(Shared)
        store(shared.flag, 1)  # type: ignore[unused-awaitable]  # the mistake under test
        await load(shared.flag)

    with pytest.raises(MisuseError, match=r"write `await store\(...\)`"):
        check_determinism(forgetful.prepare({}), RandomWalk(0), Budget())


def test_what_a_later_execution_does_differently_is_named_too() -> None:
    runs = iter(range(100))

    @workload()
    async def moody(memory: Memory) -> None:
        shared = memory.static(Shared)
        if next(runs) < 5:
            await choose(8)
        await WRITE_ONCE(shared.flag, 7)

    with pytest.raises(NondeterminismError):
        explore(moody)


def test_a_value_that_changes_between_runs_is_named() -> None:
    values = iter(range(100))

    @workload()
    async def moody(memory: Memory) -> None:
        await store(memory.static(Shared).flag, next(values))

    with pytest.raises(NondeterminismError, match="did store"):
        explore(moody)


def test_awaits_forgotten_in_a_later_execution_are_found() -> None:
    @workload()
    async def forgetful(memory: Memory) -> None:
        shared = memory.static(Shared)
        if await choose(2):
            store(shared.flag, 1)  # type: ignore[unused-awaitable]  # the mistake under test
        await load(shared.flag)

    with pytest.raises(MisuseError, match=r"write `await store"):
        explore(forgetful)


def test_a_call_of_an_async_function_that_is_not_awaited_is_found() -> None:
    async def helper(shared: Shared) -> None:
        await store(shared.flag, 1)

    @workload()
    async def forgetful(memory: Memory) -> None:
        shared = memory.static(Shared)
        helper(shared)  # type: ignore[unused-coroutine]  # the mistake under test
        await load(shared.flag)

    warnings.simplefilter("ignore")  # pytest would make the first one an error of its own
    with pytest.raises(MisuseError, match="was never awaited"):
        explore(forgetful)


def test_leaving_the_interpreter_is_a_crash_like_any_other() -> None:
    @workload()
    async def leaving(memory: Memory) -> None:
        await load(memory.static(Shared).flag)
        raise SystemExit(0)

    result = explore(leaving)

    assert "SystemExit" in result.findings[0].finding.title


def test_values_are_choices_like_threads() -> None:
    @workload()
    async def dice(memory: Memory) -> None:
        del memory
        await outcome(await choose(6))

    result = explore(dice)

    assert result.verdict == "proved"
    assert result.executions == 6
    assert set(result.outcomes) == {(value,) for value in range(6)}


def counter(n: int, k: int) -> Program:
    return find("counter").prepare({"n": n, "k": k})


def test_dfs_runs_every_interleaving_of_the_counter_once() -> None:
    explorer = Explorer(counter(2, 2), Dfs(), Budget())
    result = explorer.explore()

    assert result.verdict == "proved"
    assert result.executions == math.comb(8, 4)  # two threads of four steps each


def test_the_estimate_of_random_walks_is_near_the_number_of_interleavings() -> None:
    exact = Explorer(counter(2, 2), Dfs(), Budget()).explore().executions
    result = Explorer(counter(2, 2), RandomWalk(0), Budget(executions=4000)).explore()

    assert result.estimate == pytest.approx(exact, rel=0.1)


# -- what is shared outside of cells ---------------------------------------------------------------


@workload()
async def keeps_a_list(memory: Memory) -> None:
    """Its threads share a list: going back does not put that back."""
    shared = memory.static(Shared)
    seen: list[int] = []

    async def counts(name: str) -> None:
        seen.append(len(seen))
        value = await READ_ONCE(shared.flag)
        await WRITE_ONCE(shared.flag, value + 1)
        if len(seen) > 2:
            raise MisuseError(f"{name}: the list was not put back")

    for name in ("one", "other"):
        await spawn(counts, name, name=name)


@pytest.mark.parametrize("strategy", [Dpor(), Bounded(2)], ids=["dpor", "bounded"])
def test_executions_start_anew_where_going_back_fails(strategy: Dpor | Bounded) -> None:
    result = explore(keeps_a_list, strategy)

    assert result.complete
    assert not result.findings
    assert strategy.rewinds is False


# -- going back ------------------------------------------------------------------------------------


def test_the_collector_of_garbage_is_off_while_executions_go_back_and_then_on_again() -> None:
    during: list[bool] = []
    Explorer(counter(2, 2), Dpor(), Budget()).explore(lambda _: during.append(gc.isenabled()))

    assert not any(during)
    assert gc.isenabled()


MADE: list[int] = []  # not around a thread's function, where a change would be noticed


def test_a_coroutine_runs_only_for_results_that_its_thread_has_not_had() -> None:
    MADE.clear()

    @workload()
    async def looks(memory: Memory) -> None:
        shared = memory.static(Shared)

        async def writes() -> None:
            await WRITE_ONCE(shared.flag, 1)

        async def reads(i: int) -> None:
            MADE.append(i)
            await READ_ONCE(shared.flag)

        await spawn(writes)
        for i in range(4):
            await spawn(reads, i)

    strategy = Dpor()
    rewound = Rewound(looks.prepare({}), strategy, 100)
    executions = 0
    while strategy.begin():
        rewound.next()
        executions += 1
    rewound.close()

    assert executions == 16
    assert sorted(MADE) == [0, 0, 1, 1, 2, 2, 3, 3]  # one read 0, the other 1


@pytest.mark.parametrize(("module", "name"), [(revival, "KNOWN"), (threads, "KNOWN_RESULTS")])
def test_a_search_does_not_depend_on_how_much_is_kept_of_what_threads_did(
    module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, 1)
    result = Explorer(find("lastzero").prepare({"n": 5}), Dpor(), Budget()).explore()

    assert result.classes == 64


def test_nothing_is_reported_that_needs_more_preemptions() -> None:
    program = find("inner_map_replace").prepare({}, version="5.10")
    result = Explorer(program, Bounded(2), Budget(seconds=600), keep_going=True).explore()

    assert result.findings
    assert (result.directed, result.predicted) == (0, [])
    assert all(found.within is not None and found.within <= 2 for found in result.findings)

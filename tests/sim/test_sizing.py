"""A search that is stopped says how large it is, and nothing that is counted depends on that."""

import time
from pathlib import Path
from typing import Any

import pytest

from sim import sizing
from sim.cells import Cell, Struct, cell
from sim.explore import Budget, Explorer, Found, Result
from sim.macros import READ_ONCE, WRITE_ONCE, note
from sim.memory import Memory
from sim.run import Run
from sim.session import Sharing, searching
from sim.sizing import Aside, Sizing
from sim.strategies.dpor import Dpor
from sim.strategies.estimate import Estimate
from sim.strategies.plans import WHOLE
from sim.threads import spawn
from sim.totals import Totals
from sim.workload import Program, find, workload

KNOWN: list[tuple[str, dict[str, Any], int]] = [
    ("readers", {"n": 6}, 64),
    ("readers", {"n": 8}, 256),
    ("lastzero", {"n": 5}, 64),
    ("lastzero", {"n": 7}, 320),
    ("counter", {"n": 2, "k": 2}, 34),
    ("counter", {"n": 2, "k": 3}, 328),
    ("atomic_increment", {"n": 4}, 24),
    ("atomic_increment", {"n": 5}, 120),
    ("filesystem", {"n": 18}, 32),
    ("indexer", {"n": 13}, 64),
    ("philosophers", {"n": 6, "ordered": True}, 62),
]
MODELS = [("inner_map_replace", "6.8", 49), ("tailcall_poke", "5.10", 49)]
PERCENT = (1, 10, 50)


@pytest.fixture(autouse=True)
def no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "LEAST_S", 60.0)


def explored(program: Program, budget: Budget, **more: Any) -> Result:
    return Explorer(program, Dpor(), budget, sizing=Sizing(program, budget), **more).explore()


def sized(result: Result) -> tuple[float, float, float, int]:
    assert result.estimate is not None
    assert result.estimate_low is not None
    assert result.estimate_high is not None
    assert result.at_least is not None
    return result.estimate_low, result.estimate, result.estimate_high, result.at_least


def holds(program: Program, percent: int, classes: int) -> bool:
    done = max(1, classes * percent // 100)
    low, about, high, least = sized(explored(program, Budget(executions=done)))
    assert done < least <= classes
    assert least <= low <= about <= high
    return low <= classes <= high


def test_nearly_nine_intervals_of_ten_hold_the_truth() -> None:
    held = [
        holds(find(name).prepare(dict(params)), percent, classes)
        for name, params, classes in KNOWN
        for percent in PERCENT
    ]

    assert sum(held) >= 0.85 * len(held)


@pytest.mark.slow
def test_most_of_those_of_workloads_do() -> None:
    held = [
        holds(find(name).prepare({}, version=version), percent, classes)
        for name, version, classes in MODELS
        for percent in PERCENT
    ]
    two = find("inner_map_replace").prepare({"readers": "2"}, version="6.8")
    held += [holds(two, percent, 343) for percent in PERCENT]

    assert sum(held) >= 0.6 * len(held)


def test_a_search_that_is_over_has_nothing_to_estimate() -> None:
    result = explored(find("readers").prepare({"n": 2}), Budget())

    assert result.complete
    assert result.estimate is result.estimate_low is result.estimate_high is None
    assert result.at_least is None


def test_a_budget_that_is_just_enough_is_enough() -> None:
    result = explored(find("readers").prepare({"n": 3}), Budget(executions=8))

    assert (result.verdict, result.classes, result.estimate) == ("proved", 8, None)


def test_one_plan_that_is_left_is_counted() -> None:
    result = explored(find("readers").prepare({"n": 3}), Budget(executions=7))

    assert sized(result) == (8, 8, 8, 8)
    assert result.verdict == "inconclusive"


def test_no_seconds_at_all_are_enough_for_an_estimate() -> None:
    low, _, high, least = sized(explored(find("readers").prepare({"n": 4}), Budget(seconds=0.0)))

    assert low <= 16 <= high
    assert least == 5  # the first, and one for each race


def test_where_executions_take_long_there_is_a_lower_bound_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sizing, "LEAST_S", 0.0)
    monkeypatch.setattr(sizing, "TENTH", 0.0)
    result = explored(find("readers").prepare({"n": 8}), Budget(executions=20))

    assert result.estimate is result.estimate_low is result.estimate_high is None
    assert result.at_least is not None
    assert result.at_least > 20


def test_it_is_the_same_every_time_and_changes_nothing_else() -> None:
    program, budget = find("lastzero").prepare({"n": 9}), Budget(executions=100)
    one, other = explored(program, budget), explored(program, budget)
    alone = Explorer(program, Dpor(), budget).explore()

    assert sized(one) == sized(other)
    assert (one.executions, one.steps, one.outcomes) == (100, alone.steps, alone.outcomes)


def test_looks_during_the_search_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "LEAST_S", 0.0)
    monkeypatch.setattr(sizing, "SELDOM", 1)
    program, budget = find("lastzero").prepare({"n": 6}), Budget()
    shown: list[float | None] = []
    live = Sizing(program, budget, live=True)
    result = Explorer(program, Dpor(), budget, sizing=live).explore(
        lambda seen: shown.append(seen.estimate)
    )
    alone = Explorer(program, Dpor(), budget).explore()

    assert any(shown)
    assert (result.executions, result.steps) == (alone.executions, alone.steps)
    assert result.complete


def test_by_how_much_it_was_too_low_before_raises_the_upper_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a tree of which every sample sees a tiny part: none ever says that much is left."""
    monkeypatch.setattr(sizing, "estimate", lambda *_: Estimate(1.0, 1.0, 2.0))
    program, budget = find("lastzero").prepare({"n": 10}), Budget(executions=1000)
    raised = sized(explored(program, budget))
    monkeypatch.setattr(sizing, "LONG_AGO", 1000)
    alone = sized(explored(program, budget))

    assert alone[2] < 1100  # about as many as have been run
    assert raised[2] > 3328
    assert raised[:2] == alone[:2]


def test_what_is_kept_to_look_back_is_little() -> None:
    program = find("lastzero").prepare({"n": 10})
    live = Sizing(program, Budget())
    for done in range(5000):
        live.remember(done, lambda: [[], [[[], []]]])

    marks = [done for done, _ in live._earlier]
    assert marks == [256, 512, 1024, 2048, 4096]  # 256 is a sixteenth of 4,096


@pytest.mark.parametrize("jobs", [1, 2])
def test_searches_that_are_resumed_or_shared_have_one(jobs: int, tmp_path: Path) -> None:
    program = find("lastzero").prepare({"n": 8})  # 704 classes
    for done in (100, 300):
        budget = Budget(executions=done, seconds=600)
        sharing = Sharing(jobs=jobs)
        with searching(
            program, Dpor(), budget, tmp_path, resume=done > 100, sharing=sharing
        ) as search:
            low, about, high, least = sized(search.explore())
        assert least <= low <= about <= high
        assert done < least <= 704
        if jobs == 1:  # else what is left when it stops is not always the same
            assert low <= 704 <= high


def test_ctrl_c_gives_one_too() -> None:
    program, budget = find("lastzero").prepare({"n": 8}), Budget()
    explorer = Explorer(program, Dpor(), budget, sizing=Sizing(program, budget))

    def progress(result: Result) -> None:
        if result.executions > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explorer.explore(progress)
    low, _, high, least = sized(explorer.interrupted())

    assert low <= 704 <= high
    assert 100 < least <= 704


def test_ctrl_c_ends_the_estimating(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_self: Aside, _alone: Any) -> Run:
        raise KeyboardInterrupt

    monkeypatch.setattr(Aside, "run", interrupted)
    result = explored(find("readers").prepare({"n": 8}), Budget(executions=20))

    assert (result.stopped, result.estimate) == ("the budget of 20 executions", None)


# -- what is found meanwhile -----------------------------------------------------------------------


class Shared(Struct):
    """What the threads share."""

    flag: Cell[int] = cell(0)


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


@pytest.mark.parametrize("keep_going", [False, True])
def test_what_is_found_by_estimating_is_found(keep_going: bool) -> None:
    traces: list[Found] = []

    def on_found(found: Found) -> str:
        traces.append(found)
        return "here"

    program, budget = needs_a_preemption.prepare({}), Budget(executions=1)
    totals = Totals(budget, optimal=True, keep_going=keep_going, on_found=on_found)
    result = explored(program, budget, totals=totals)

    assert result.verdict == "finding"
    assert (result.executions, len(traces)) == (1, 1)
    assert (traces[0].probed, traces[0].number, traces[0].trace) == (True, 1, "here")
    assert Explorer(program, Dpor(), Budget()).explore().findings[0].finding == traces[0].finding
    assert result.stopped == ("the budget of 1 execution" if keep_going else "a finding")


def test_a_search_that_was_stopped_does_not_take_its_time_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sizing, "LEAST_S", 0.5)
    began = time.monotonic()
    result = explored(find("lastzero").prepare({"n": 14}), Budget(seconds=0.1))

    assert time.monotonic() - began < 5
    assert result.elapsed_s < 0.5  # without what was run to estimate


def test_a_search_that_has_run_nothing_yet_has_nothing_to_look_back_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where Ctrl-C comes before workers have handed in anything."""
    monkeypatch.setattr(sizing, "LEAST_S", 0.2)
    program, budget = find("lastzero").prepare({"n": 14}), Budget()
    totals = Totals(budget, optimal=True)
    Sizing(program, budget).conclude(WHOLE, totals.result, lambda _run: None)

    assert totals.result.executions == 0
    assert totals.result.at_least == 1
    assert totals.result.estimate is not None

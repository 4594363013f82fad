"""What each workload shows on each kernel: found where the kernel had the bug, nowhere else."""

import pytest

from sim.choosing import Strategy
from sim.errors import UsageError
from sim.explore import Budget, Explorer, Result
from sim.strategies.dfs import Dfs
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.workload import find

UAF = "use-after-free"
FIXED = "876673364161"
RCU_ONLY = "mutant:inner-free-rcu-only"
TRACE_ONLY = "mutant:inner-free-trace-only"

FOUND_WITHIN = 3  # executions: the first random one predicts it, a directed one witnesses it
CLEAN_FOR = 100 * FOUND_WITHIN


def explore(
    workload: str,
    strategy: Strategy,
    budget: Budget,
    version: str = "5.10",
    params: dict[str, str] | None = None,
    add: tuple[str, ...] = (),
    remove: tuple[str, ...] = (),
) -> Result:
    program = find(workload).prepare(params or {}, version=version, add=add, remove=remove)
    return Explorer(program, strategy, budget).explore()


@pytest.mark.parametrize("outer", ["array", "hash"])
@pytest.mark.parametrize("seed", range(3))
def test_v5_10_frees_an_inner_map_that_a_program_uses(outer: str, seed: int) -> None:
    result = explore(
        "inner_map_replace",
        RandomWalk(seed),
        Budget(executions=FOUND_WITHIN),
        params={"outer": outer},
    )

    assert [found.finding.kind for found in result.findings] == [UAF]
    assert result.findings[0].finding.title == "BUG: KASAN: use-after-free in bpf_prog_lookup"
    assert "reader0" in result.findings[0].finding.threads


def test_the_race_is_found_without_a_directed_search_too() -> None:
    program = find("inner_map_replace").prepare({})
    explorer = Explorer(program, Dfs(1, distinct=True), Budget())
    explorer.search_for = lambda *_: None  # type: ignore[method-assign]  # searches nothing

    result = explorer.explore()

    assert [found.finding.kind for found in result.findings] == [UAF]
    assert not result.findings[0].directed


@pytest.mark.parametrize("version", ["5.8", "6.8"])
@pytest.mark.parametrize("strategy", [RandomWalk(0), Pct(0)])
def test_before_and_after_nothing_is_found(version: str, strategy: Strategy) -> None:
    result = explore("inner_map_replace", strategy, Budget(executions=CLEAN_FOR), version)

    assert result.findings == []
    assert result.executions == CLEAN_FOR
    assert result.verdict == "inconclusive"
    assert {(100,), (101,)} >= {seen[0] for seen in result.outcomes} - {("none",)}


def test_v5_8_is_clean_within_one_preemption() -> None:
    result = explore("inner_map_replace", Dfs(1, distinct=True), Budget(seconds=600), "5.8")

    assert result.complete
    assert result.findings == []
    assert result.verdict == "inconclusive"
    assert len(result.outcomes) == 3


@pytest.mark.slow
@pytest.mark.parametrize("version", ["5.8", "6.8"])
def test_clean_kernels_are_clean_within_two_preemptions(version: str) -> None:
    result = explore("inner_map_replace", Dfs(2, distinct=True), Budget(seconds=1500), version)

    assert result.complete
    assert result.findings == []
    assert len(result.outcomes) == 3


@pytest.mark.parametrize(
    ("version", "add", "remove", "found"),
    [
        ("6.8", (), (FIXED,), True),
        ("5.10", (), ("bba1dc0b55ac",), False),
        ("5.10", (FIXED,), (), False),
        ("5.12", (TRACE_ONLY,), (), True),
        ("6.8", (TRACE_ONLY,), (), False),  # there, Tasks Trace grace periods contain RCU ones
        ("6.8", (RCU_ONLY,), (), False),  # enough for programs that do not sleep
    ],
)
def test_it_is_the_fix_that_decides(
    version: str, add: tuple[str, ...], remove: tuple[str, ...], found: bool
) -> None:
    budget = Budget(executions=100)
    result = explore("inner_map_replace", RandomWalk(1), budget, version, add=add, remove=remove)

    assert [f.finding.kind for f in result.findings] == [UAF] * found


@pytest.mark.parametrize(
    ("version", "add", "found"),
    [("5.12", (), True), ("6.8", (RCU_ONLY,), True), ("6.8", (), False), ("5.12", (FIXED,), False)],
)
def test_sleeping_readers_need_both_grace_periods(
    version: str, add: tuple[str, ...], found: bool
) -> None:
    budget = Budget(executions=100)
    result = explore("inner_map_replace_sleepable", RandomWalk(0), budget, version, add=add)

    assert [f.finding.kind for f in result.findings] == [UAF] * found


@pytest.mark.parametrize("version", ["5.8", "5.9", "5.10"])
def test_sleepable_programs_may_not_use_maps_of_maps_before_v5_12(version: str) -> None:
    with pytest.raises(UsageError, match="-EINVAL"):
        explore("inner_map_replace_sleepable", RandomWalk(0), Budget(executions=1), version)


@pytest.mark.parametrize("locking", ["nobody", "program"])
def test_values_race_and_tear_unless_everybody_locks(locking: str) -> None:
    budget = Budget(executions=300)
    result = explore("array_map_values", RandomWalk(0), budget, params={"locking": locking})

    assert result.findings == []
    assert {found.finding.kind for found in result.races} == {"data-race"}
    assert any(str(seen[0]).startswith("torn") for seen in result.outcomes)


def test_values_neither_race_nor_tear_when_everybody_locks() -> None:
    budget = Budget(executions=300)
    result = explore("array_map_values", RandomWalk(0), budget, params={"locking": "everybody"})

    assert result.findings == []
    assert result.races == []
    assert {seen[0] for seen in result.outcomes} == {"whole: 1", "whole: 2", "whole: 3"}


@pytest.mark.parametrize(
    "params",
    [
        {"teardown": "yes"},
        {"preempt": "none", "cpus": "2"},
        {"readers": "2", "updates": "3", "runs": "2"},
        {"readers": "2", "cpus": "1"},
    ],
    ids=str,
)
@pytest.mark.parametrize("strategy", [RandomWalk(0), Pct(0)])
def test_negative_controls_are_silent(params: dict[str, str], strategy: Strategy) -> None:
    result = explore("inner_map_replace", strategy, Budget(executions=60), "6.8", params=params)

    assert result.findings == []
    assert result.executions == 60

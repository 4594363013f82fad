"""What the workloads on tail calls show, for every kernel and with every rule broken."""

import pytest

from sim.choosing import Strategy
from sim.explore import Budget, Explorer, Result
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.workload import find

EXECUTE = "use-after-free-execute"
UAF = "use-after-free"
FRAME = "corrupted-frame"
BUG = "kernel-bug"
RACE = "data-race"
INVARIANT = "invariant"
LEAK = "memory-leak"

Seeded = type[RandomWalk] | type[Pct]

CLEAN_FOR = 200
FOUND_WITHIN = 1000


def explore(
    workload: str,
    strategy: Strategy,
    version: str = "5.10",
    params: dict[str, str] | None = None,
    add: tuple[str, ...] = (),
    remove: tuple[str, ...] = (),
    executions: int = CLEAN_FOR,
) -> Result:
    program = find(workload).prepare(params or {}, version=version, add=add, remove=remove)
    return Explorer(program, strategy, Budget(executions=executions)).explore()


def kinds(result: Result) -> set[str]:
    return {found.finding.kind for found in result.findings}


def assert_clean(result: Result, executions: int = CLEAN_FOR) -> None:
    assert kinds(result) == set()
    assert result.executions == executions


# -- poking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["5.5", "5.9", "5.10", "6.12"])
@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
def test_poking_is_clean(version: str, strategy: Seeded) -> None:
    result = explore("tailcall_poke", strategy(0), version, {"runs": "2"})

    assert_clean(result)
    if strategy is Pct:  # a random walk seldom gets to an update before the callers
        assert {((99, 99), (99, 99)), ((1, 1), (1, 1))} <= set(result.outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["5.5", "5.9", "5.10", "6.7", "6.12"])
@pytest.mark.parametrize(
    "params",
    [
        {"runs": "2", "updates": "2", "reinstall": "yes"},
        {"runs": "2", "installed": "yes", "reinstall": "yes"},
        {"runs": "2", "key": "variable"},
    ],
    ids=str,
)
def test_poking_is_clean_for_longer(version: str, params: dict[str, str]) -> None:
    for strategy in (RandomWalk(1), Pct(1)):
        assert_clean(explore("tailcall_poke", strategy, version, params, executions=500), 500)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["5.10", "5.14", "6.12"])
@pytest.mark.parametrize("key", ["constant", "variable"])
def test_poking_is_clean_in_a_function(version: str, key: str) -> None:
    params = {"source": "subprog", "key": key, "runs": "2"}
    assert_clean(explore("tailcall_poke", Pct(0), version, params, executions=500), 500)


MUTANTS = [
    ("install-swapped", 3, {"runs": "2"}, FRAME),
    ("remove-no-gp", 2, {"installed": "yes"}, FRAME),
    ("remove-trace-gp", 2, {"installed": "yes"}, FRAME),
    ("push-back", 3, {}, INVARIANT),
    ("poke-no-int3", 3, {"runs": "2"}, BUG),
    ("put-before-poke", 3, {"updates": "2"}, UAF),
]


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("mutant", "depth", "params", "kind"), MUTANTS)
def test_what_the_rules_of_poking_are_for(
    mutant: str, depth: int, params: dict[str, str], kind: str, seed: int
) -> None:
    broken = (f"mutant:{mutant}",)
    strategy = Pct(seed, depth)
    result = explore("tailcall_poke", strategy, "5.10", params, broken, executions=FOUND_WITHIN)

    assert kinds(result) == {kind}


@pytest.mark.parametrize("version", ["5.5", "5.9", "6.12"])
@pytest.mark.parametrize(
    ("mutant", "depth", "params", "kind"),
    [case for case in MUTANTS if case[0] in ("poke-no-int3", "put-before-poke")],
)
def test_rules_that_all_kernels_have(
    version: str, mutant: str, depth: int, params: dict[str, str], kind: str
) -> None:
    broken = (f"mutant:{mutant}",)
    strategy = Pct(0, depth)
    result = explore("tailcall_poke", strategy, version, params, broken, executions=FOUND_WITHIN)

    assert kinds(result) == {kind}


# -- the load window -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("source", ["main", "subprog"])
@pytest.mark.parametrize("change", ["update", "delete"])
def test_the_load_window_leads_to_freed_text(source: str, change: str, seed: int) -> None:
    params = {"source": source, "change": change, "again": "no"}
    result = explore("tailcall_load_window", Pct(seed), "5.10", params)

    assert kinds(result) == {EXECUTE}


@pytest.mark.parametrize("version", ["5.10", "5.14"])
@pytest.mark.parametrize("source", ["main", "subprog"])
def test_an_install_that_the_load_window_swallows_crashes_the_next_update(
    version: str, source: str
) -> None:
    params = {"installed": "no", "source": source}
    result = explore("tailcall_load_window", Pct(0), version, params)

    assert kinds(result) == {BUG}


@pytest.mark.parametrize(
    ("params", "strategy"),
    [
        ({}, RandomWalk),
        ({"installed": "no"}, Pct),
        pytest.param({}, Pct, marks=pytest.mark.slow),
        pytest.param({"installed": "no"}, RandomWalk, marks=pytest.mark.slow),
        pytest.param({"change": "delete"}, RandomWalk, marks=pytest.mark.slow),
        pytest.param({"change": "delete"}, Pct, marks=pytest.mark.slow),
        pytest.param({"source": "subprog"}, Pct, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_there_is_no_load_window_on_v6_7(params: dict[str, str], strategy: Seeded) -> None:
    assert_clean(explore("tailcall_load_window", strategy(0), "6.7", params))


@pytest.mark.parametrize("params", [{}, {"installed": "no"}], ids=str)
def test_it_is_the_fix_that_closes_the_load_window(params: dict[str, str]) -> None:
    fix = ("4b7de801606e",)
    with_fix = explore("tailcall_load_window", Pct(0), "5.10", params, add=fix, executions=30)
    without = explore("tailcall_load_window", Pct(0), "6.7", params, remove=fix)

    assert_clean(with_fix, 30)
    assert kinds(without) & {EXECUTE, BUG}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("mutant", "found"),
    [("stable-first", {BUG, EXECUTE, FRAME}), ("fixup-unlocked", {RACE, BUG, EXECUTE, FRAME})],
)
def test_the_stable_flag_comes_last_and_under_the_mutex(
    mutant: str, found: set[str], seed: int
) -> None:
    broken = (f"mutant:{mutant}",)
    strategy = Pct(seed)
    result = explore("tailcall_load_window", strategy, "6.7", {}, broken, executions=FOUND_WITHIN)

    assert kinds(result)
    assert kinds(result) <= found


# -- programs that are gone ----------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [RandomWalk, pytest.param(Pct, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("version", "params", "add", "found"),
    [
        ("5.10", {}, (), {UAF}),
        ("5.10", {}, ("f263a81451c1",), set()),
        ("5.14", {}, (), set()),
        ("5.10", {"source": "main"}, (), set()),
        ("5.10", {"source": "main"}, ("mutant:no-untrack",), {UAF}),
        ("5.14", {}, ("mutant:no-untrack",), {UAF}),
    ],
    ids=str,
)
def test_functions_of_freed_programs_are_forgotten(
    version: str,
    params: dict[str, str],
    add: tuple[str, ...],
    found: set[str],
    strategy: Seeded,
) -> None:
    result = explore("tailcall_subprog_untrack", strategy(0), version, params, add)

    assert kinds(result) == found


# -- the last user -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "strategy"),
    [("yes", RandomWalk), ("no", Pct), pytest.param("yes", Pct, marks=pytest.mark.slow)],
)
def test_a_prog_array_is_cleared_when_nobody_has_it(second: str, strategy: Seeded) -> None:
    result = explore("prog_array_clear", strategy(0), params={"second": second})

    assert_clean(result)
    assert set(result.outcomes) == ({("there",)} if second == "yes" else set())


def test_a_prog_array_was_cleared_under_its_users() -> None:
    result = explore("prog_array_clear", RandomWalk(0), remove=("c9da161c6517",))

    assert kinds(result) == {INVARIANT}


def test_a_prog_array_that_is_cleared_while_that_is_pending_was_leaked() -> None:
    result = explore("prog_array_clear", Pct(0), remove=("c9da161c6517",))

    assert kinds(result)
    assert kinds(result) <= {INVARIANT, LEAK}


STALL = {"second": "no", "waiters": "1", "entries": "600", "cpus": "3", "preempt": "none"}


@pytest.mark.parametrize(("add", "found"), [((), {"rcu-stall"}), (("4406942e65ca",), set())])
def test_clearing_a_big_array_stalls_grace_periods(add: tuple[str, ...], found: set[str]) -> None:
    result = explore("prog_array_clear", RandomWalk(0), "5.10", STALL, add, executions=5)

    assert kinds(result) == found


@pytest.mark.parametrize("change", [{"entries": "4"}, {"preempt": "full"}], ids=str)
def test_clearing_stalls_only_where_it_takes_long_and_is_not_preempted(
    change: dict[str, str],
) -> None:
    result = explore("prog_array_clear", RandomWalk(0), params=STALL | change, executions=5)

    assert kinds(result) == set()

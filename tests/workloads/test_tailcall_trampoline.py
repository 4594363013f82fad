"""What tail calls show while programs are traced: the count gets lost, patching stays safe."""

import pytest

from sim.choosing import Strategy
from sim.errors import UsageError
from sim.explore import Budget, Explorer, Result
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.workload import find

FIX = ("2b5dcb31a19a",)
LOOP = "unbounded-loop"
CYCLE = "BUG: unbounded tail calls: bpf_prog_again -> bpf_prog_again"
CLEAN_FOR = 25
FOUND_WITHIN = 300

Seeded = type[RandomWalk] | type[Pct]


def explore(
    workload: str,
    strategy: Strategy,
    version: str = "5.10",
    params: dict[str, str] | None = None,
    add: tuple[str, ...] = (),
    remove: tuple[str, ...] = (),
    executions: int = FOUND_WITHIN,
) -> Result:
    program = find(workload).prepare(params or {}, version=version, add=add, remove=remove)
    return Explorer(program, strategy, Budget(executions=executions)).explore()


def titles(result: Result) -> list[str]:
    return [found.finding.title for found in result.findings]


# -- the count -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
@pytest.mark.parametrize(
    ("version", "remove"),
    [("5.10", ()), ("5.12", ()), ("6.1", ()), ("6.7", FIX)],
)
def test_a_trampoline_loses_the_count(
    version: str, remove: tuple[str, ...], strategy: Seeded
) -> None:
    result = explore("tailcall_trampoline", strategy(0), version, remove=remove)

    assert titles(result) == [CYCLE]
    [found] = result.findings
    assert found.finding.kind == LOOP
    assert found.finding.fatal
    assert found.finding.details[0].heading.startswith("34 tail calls in one run")


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
@pytest.mark.parametrize(
    ("version", "add"), [("5.10", FIX), ("5.12", FIX), ("6.7", ()), ("6.12", ())]
)
@pytest.mark.parametrize("kind", ["fentry", "fexit"])
def test_it_is_the_fix_that_keeps_it(
    kind: str, version: str, add: tuple[str, ...], strategy: Seeded
) -> None:
    params = {"kind": kind}
    result = explore("tailcall_trampoline", strategy(0), version, params, add, (), CLEAN_FOR)

    assert titles(result) == []
    assert set(result.outcomes) == {(68,)}  # two runs of 34
    assert result.executions == CLEAN_FOR


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
def test_behind_the_function_it_is_lost_since_images_are_counted(strategy: Seeded) -> None:
    """A fexit image of v5.10 calls nothing before the function; that of e21aa341785c does."""
    params = {"kind": "fexit"}
    before = explore("tailcall_trampoline", strategy(0), "5.10", params, executions=CLEAN_FOR)
    since = explore("tailcall_trampoline", strategy(0), "5.12", params)

    assert titles(before) == []
    assert titles(since) == [CYCLE]


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
def test_a_main_function_is_entered_behind_its_trampoline(strategy: Seeded) -> None:
    params = {"function": "main"}
    result = explore("tailcall_trampoline", strategy(0), params=params, executions=CLEAN_FOR)

    assert titles(result) == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
def test_it_is_kept_for_longer(strategy: Seeded) -> None:
    params = {"callers": "2", "times": "2", "runs": "3"}
    result = explore("tailcall_trampoline", strategy(1), "6.7", params, executions=FOUND_WITHIN)

    assert titles(result) == []


# -- patching ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
@pytest.mark.parametrize("traced", ["fentry", "fexit"])
@pytest.mark.parametrize("source", ["main", "subprog"])
def test_patching_is_safe_while_the_function_is_traced(
    source: str, traced: str, strategy: Seeded
) -> None:
    params = {
        "source": source,
        "traced": traced,
        "tasks_rcu": "yes",
        "runs": "2",
        "reinstall": "yes",
    }
    result = explore("tailcall_poke", strategy(0), "5.10", params, executions=100)

    assert titles(result) == []
    assert len(result.outcomes) > 3


@pytest.mark.parametrize(
    ("mutant", "depth", "params"),
    [("install-swapped", 3, {"runs": "2"}), ("remove-no-gp", 2, {"installed": "yes"})],
)
def test_the_rules_of_patching_are_for_traced_functions_too(
    mutant: str, depth: int, params: dict[str, str]
) -> None:
    traced = {"traced": "fentry", "tasks_rcu": "yes", **params}
    broken = (f"mutant:{mutant}",)
    strategy = Pct(0, depth)
    result = explore("tailcall_poke", strategy, "5.10", traced, broken, executions=2000)

    assert [found.finding.kind for found in result.findings] == ["corrupted-frame"]


def test_a_trampoline_needs_tasks_rcu() -> None:
    with pytest.raises(UsageError, match="tasks_rcu=yes"):
        explore("tailcall_poke", RandomWalk(0), params={"traced": "fentry"})

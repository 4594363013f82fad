"""Loads that fail late: nothing of the program is found by a later update, or is left (R12)."""

from __future__ import annotations

import pytest

from sim.explore import Budget, Explorer, Result
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.workload import find

FIX = ("a2ea07465c8d",)
UAF = "BUG: KASAN: use-after-free in prog_array_map_poke_run"
CASES = [("main", "5.5"), ("main", "5.9"), ("main", "5.10"), ("subprog", "5.10"), ("main", "6.12"),
         ("subprog", "6.12")]  # fmt: skip


def search(
    strategy: RandomWalk | Pct,
    version: str,
    params: dict[str, str],
    remove: tuple[str, ...] = (),
    executions: int = 200,
) -> Result:
    program = find("tailcall_load_error").prepare(params, version=version, remove=remove)
    return Explorer(program, strategy, Budget(executions=executions)).explore()


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
@pytest.mark.parametrize(("source", "version"), CASES)
def test_a_load_that_fails_leaves_nothing(
    source: str, version: str, strategy: type[RandomWalk | Pct]
) -> None:
    result = search(strategy(0), version, {"source": source})

    assert not result.findings
    assert {("loaded",), ("ENOMEM",), ("EFAULT",)} == set(result.outcomes)


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
@pytest.mark.parametrize(("source", "version"), CASES)
def test_without_untracking_an_update_finds_what_was_freed(
    source: str, version: str, strategy: type[RandomWalk | Pct]
) -> None:
    result = search(strategy(0), version, {"source": source}, FIX)

    assert [found.finding.title for found in result.findings] == [UAF]


@pytest.mark.parametrize("source", ["main", "subprog"])
def test_updates_meanwhile_do_no_harm_either(source: str) -> None:
    params = {"source": source, "meanwhile": "yes"}

    assert not search(Pct(0), "6.8", params).findings
    assert [f.finding.title for f in search(Pct(0), "6.8", params, FIX).findings] == [UAF]

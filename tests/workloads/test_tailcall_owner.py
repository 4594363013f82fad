"""Programs of two types in one prog array: when that happens, and that it is found out."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_model.bpf.attr import BPF_MAP_TYPE_PROG_ARRAY
from kernel_model.bpf.jit_prog import bpf_check_tail_call
from kernel_model.bpf.prog_array import bpf_prog_array_compatible
from kernel_model.bpf.prog_attr import BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_PROG_TYPE_SCHED_CLS
from kernel_model.kernel import Kernel
from kernel_model.uapi import bpf_create_map, bpf_map_update_elem, u32
from sim.explore import Budget, Explorer, Result
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.workload import find
from tests.kernel_model.bpf.running import explore, load, traced
from tests.kernel_model.bpf.test_tail_call import RETURN, TAIL, VARIABLE

WRONG = "wrong-type-tail-call"
TITLE = "BUG: tail call to a program of another type: bpf_prog_caller -> bpf_prog_target"
LOCK = ("54713c85f536",)
Seeded = type[RandomWalk] | type[Pct]


def search(
    strategy: RandomWalk | Pct,
    params: dict[str, str],
    version: str = "5.10",
    add: tuple[str, ...] = (),
    remove: tuple[str, ...] = (),
    executions: int = 300,
) -> Result:
    program = find("tailcall_owner").prepare(params, version=version, add=add, remove=remove)
    return Explorer(program, strategy, Budget(executions=executions)).explore()


def kinds(result: Result) -> list[str]:
    return [found.finding.kind for found in result.findings]


RACES = [{"race": "update"}, {"race": "load", "key": "variable"}]


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
@pytest.mark.parametrize("params", RACES, ids=str)
def test_two_first_users_at_once_both_get_in(params: dict[str, str], strategy: Seeded) -> None:
    assert kinds(search(strategy(0), params)) == [WRONG]


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
@pytest.mark.parametrize("params", RACES, ids=str)
def test_the_lock_of_the_owner_lets_one_in(params: dict[str, str], strategy: Seeded) -> None:
    result = search(strategy(0), params, add=LOCK)

    assert kinds(result) == []
    assert len(result.outcomes) == 2  # whoever comes first
    assert not [said for said in result.outcomes if "refused" not in said]


def test_it_is_that_commit_on_later_kernels_too() -> None:
    assert kinds(search(RandomWalk(0), RACES[0], "6.8")) == []
    assert kinds(search(RandomWalk(0), RACES[0], "6.8", remove=LOCK)) == [WRONG]


@pytest.mark.parametrize("params", RACES, ids=str)
def test_without_the_check_every_execution_shows_it(params: dict[str, str]) -> None:
    result = search(RandomWalk(0), params, "6.8", ("mutant:no-owner-check",))

    assert (kinds(result), result.executions) == ([WRONG], 1)


@pytest.mark.parametrize("params", RACES, ids=str)
def test_programs_of_one_type_may_call_each_other(params: dict[str, str]) -> None:
    result = search(Pct(0), params | {"target": "raw_tracepoint"})

    assert kinds(result) == []
    assert any((2,) in said for said in result.outcomes)


# -- one thread, and one check left out ----------------------------------------------------------


async def agreeable(kernel: Kernel, prog: Any, maps: Any) -> int:
    del kernel, prog, maps
    return 0


async def permissive(kernel: Kernel, array: Any, prog: Any) -> bool:
    del kernel, array, prog
    return True


@pytest.mark.parametrize("code", [TAIL + RETURN, VARIABLE + RETURN], ids=["direct", "indirect"])
@pytest.mark.parametrize(
    ("original", "mine"),
    [(bpf_check_tail_call, agreeable), (bpf_prog_array_compatible, permissive)],
    ids=["at load", "everywhere"],
)
@pytest.mark.parametrize("version", ["5.5", "5.10", "6.12"])
def test_a_type_that_is_not_checked_is_found(
    version: str, original: Any, mine: Any, code: str
) -> None:
    async def main(kernel: Kernel) -> int:
        kernel.replace(original, mine)
        map_fd = await bpf_create_map(kernel, BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)
        target = await load(kernel, "r0 = 2\nexit", BPF_PROG_TYPE_SCHED_CLS, name="target")
        assert await bpf_map_update_elem(kernel, map_fd, u32(0), u32(target)) == 0
        caller = await load(
            kernel, code, BPF_PROG_TYPE_RAW_TRACEPOINT, {"progs": map_fd}, name="caller"
        )
        return await traced(kernel, caller, 0)

    assert list(explore(main, version, limit=1).wrong) == [TITLE]


def test_the_report_names_the_types_and_the_owners() -> None:
    ((found,)) = search(RandomWalk(0), RACES[0]).findings
    text = "\n".join(
        line for detail in found.finding.details for line in (detail.heading, *detail.lines)
    )

    assert found.finding.title == TITLE
    assert "is of type raw_tracepoint, bpf_prog_target of type sched_cls" in text
    owners = text.partition("Owners of prog arrays, as they were set:")[2]
    assert "sched_cls by updater" in owners
    assert "raw_tracepoint by other" in owners

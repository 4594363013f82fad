"""Proofs: optimal DPOR runs every class of executions of a workload, and finds nothing.

What random executions come to has to be among what the search has seen.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sim.explore import Budget, Explorer, Result
from sim.strategies.dpor import Dpor
from sim.strategies.random_walk import RandomWalk
from sim.workload import find

RCUSIM = Path(sys.executable).parent / "rcusim"

Case = tuple[str, str, dict[str, str], int]

#: Workload, kernel, parameters, number of classes.
PROVED: list[Case] = [
    ("inner_map_replace", "6.8", {}, 49),
    ("tailcall_poke", "5.10", {}, 49),
    ("n1_poke_dying_program", "5.10", {}, 12),
    ("n2_tailcall_remove", "5.10", {}, 5),
    ("n3_map_of_sleeping_program", "5.10", {}, 5),
    ("n4_outer_map_free", "5.10", {}, 6),
    ("n6_fentry_attach", "5.10", {}, 7),
]
PROVED_SLOW: list[Case] = [
    ("inner_map_replace", "6.8", {"readers": "2"}, 343),
    ("tailcall_poke", "5.10", {"installed": "yes"}, 300),
    ("n5_inner_map_swaps", "6.8", {}, 343),
    ("n7_prog_array_insert_clear", "5.10", {}, 156),
    ("inner_map_replace", "6.8", {"teardown": "yes"}, 168),
    ("array_map_values", "5.10", {}, 304),
    ("tailcall_load_window", "6.7", {"installed": "no"}, 150),
    ("prog_array_clear", "5.10", {}, 126),
    ("trampoline_fexit_sleep", "5.12", {}, 213),
]
RANDOM = 2000  # random executions to compare with
MANY: list[Case] = [*PROVED[:2], PROVED_SLOW[0]]  # the cases to compare with so many; others: 100


def explored(name: str, version: str, params: dict[str, str]) -> dict[str, Any]:
    """What the command tells about a complete search."""
    given = [f"--param={key}={value}" for key, value in params.items()]
    done = subprocess.run(  # our own command
        [str(RCUSIM), "explore", name, "--kernel", version, "--strategy", "dpor", "--json", *given],
        capture_output=True,
        text=True,
        cwd=tempfile.mkdtemp(prefix="rcusim-test-"),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def assert_proved(name: str, version: str, params: dict[str, str], number: int) -> None:
    told = explored(name, version, params)
    assert told["verdict"] == "proved"
    assert told["complete"]
    assert (told["executions"], told["blocked"], told["redundant"]) == (number, 0, 0)
    assert told["classes"] == number
    assert told["findings"] == []


def explore(name: str, version: str, params: dict[str, str], executions: int | None) -> Result:
    """All executions, or so many random ones."""
    strategy = Dpor() if executions is None else RandomWalk(0)
    program = find(name).prepare(params, version=version)
    return Explorer(program, strategy, Budget(executions=executions, seconds=600)).explore()


@pytest.mark.parametrize(("name", "version", "params", "number"), PROVED)
def test_proved(name: str, version: str, params: dict[str, str], number: int) -> None:
    assert_proved(name, version, params, number)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "version", "params", "number"), PROVED_SLOW)
def test_proved_slow(name: str, version: str, params: dict[str, str], number: int) -> None:
    assert_proved(name, version, params, number)


@pytest.mark.parametrize(
    ("name", "version", "params", "executions"),
    [
        *((*case[:3], RANDOM // 20) for case in PROVED),
        *(pytest.param(*case[:3], RANDOM, marks=pytest.mark.slow) for case in MANY),
    ],
)
def test_random_executions_come_to_nothing_else(
    name: str, version: str, params: dict[str, str], executions: int
) -> None:
    complete = explore(name, version, params, None)
    random = explore(name, version, params, executions)

    assert complete.verdict == "proved"
    assert random.outcomes.keys() <= complete.outcomes.keys()

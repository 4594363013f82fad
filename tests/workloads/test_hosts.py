"""Every workload, under many seeds: the same bytes from both hosts, after the header."""

from io import BytesIO

import pytest

from sim.record import builder, header_of
from sim.run import HOSTS
from sim.strategies.random_walk import RandomWalk
from sim.trace.writer import recording
from sim.workload import Program, known

SEEDS = range(4)
CASES: list[tuple[str, dict[str, str], str | None]] = [
    (name, {}, version)
    for name, made in known().items()
    for version in (("5.10", "5.12", "6.8") if made.model.parameters else (None,))
    if (name, version) != ("inner_map_replace_sleepable", "5.10")  # refused there
]
CASES += [("inner_map_replace", {"preempt": "none", "cpus": "2", "teardown": "yes"}, "6.8")]


def recorded(program: Program, seed: int, host: str) -> bytes:
    """The lines of a random run's trace, without the header."""
    file = BytesIO()
    strategy = RandomWalk(seed)
    strategy.begin()
    header = header_of(program, "random", seed, 1)
    with recording(file, header, builder(program), strategy) as execution:
        HOSTS[host](execution)
    return file.getvalue().partition(b"\n")[2]


@pytest.mark.parametrize(("name", "params", "version"), CASES)
def test_both_hosts_write_the_same_bytes(
    name: str, params: dict[str, str], version: str | None
) -> None:
    program = known()[name].prepare(params, version=version)
    for seed in SEEDS:
        assert recorded(program, seed, "direct") == recorded(program, seed, "trio")

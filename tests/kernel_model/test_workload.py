"""Workloads on the kernel: configuration, replaced functions, what a kernel refuses."""

from io import BytesIO

import pytest

from kernel_model.bpf.map_refs import bpf_map_free_in_work
from kernel_model.fixes import Fix
from kernel_model.kernel import Kernel
from kernel_model.workload import checked, kernel_workload
from sim.errors import MisuseError, UsageError
from sim.explore import Budget, Explorer, check_determinism
from sim.hosts import direct
from sim.record import builder, header_of
from sim.strategies.random_walk import RandomWalk
from sim.trace.reader import parse_trace
from sim.trace.writer import recording
from sim.workload import Program
from workloads.inner_map_replace import inner_map_replace


async def free_at_the_last_put(kernel: Kernel, map: object) -> None:
    """What a patch might do: nothing is freed any more."""


@kernel_workload()
async def patched(kernel: Kernel) -> None:
    kernel.replace(bpf_map_free_in_work, free_at_the_last_put)
    await inner_map_replace.function(kernel)


def trace_of(program: Program, strategy: RandomWalk) -> bytes:
    file = BytesIO()
    strategy.begin()
    header = header_of(program, "random", 0, 1)
    with recording(file, header, builder(program), strategy) as execution:
        direct.run(execution)
    return file.getvalue()


def test_a_replaced_function_runs_and_is_named_in_trace_and_verdict() -> None:
    program = patched.prepare()
    result = Explorer(program, RandomWalk(0), Budget(executions=5)).explore()
    trace = parse_trace(trace_of(program, RandomWalk(0)), "trace")

    assert {found.finding.kind for found in result.findings} == {"memory-leak"}
    assert result.remarks == {"replaced": "bpf_map_free_in_work"}
    assert trace.header.environment["replaced"] == "bpf_map_free_in_work"


def test_a_function_is_replaced_before_the_run_begins() -> None:
    @kernel_workload()
    async def too_late(kernel: Kernel) -> None:
        await inner_map_replace.function(kernel)
        kernel.replace(bpf_map_free_in_work, free_at_the_last_put)

    with pytest.raises(MisuseError, match="before the first `await`"):
        check_determinism(too_late.prepare(), RandomWalk(0), Budget())


def test_a_machine_is_what_version_and_fixes_make_it() -> None:
    program = inner_map_replace.prepare({"cpus": "2"}, version="5.10", add=["876673364161"])
    again = inner_map_replace.restore(program.params, program.machine.environment)

    assert program.machine.environment["model"] == "v5.10 model +876673364161"
    assert again.machine.environment == program.machine.environment
    assert again.digest == program.digest


@pytest.mark.parametrize(
    ("version", "add", "remove", "says"),
    [
        ("4.19", [], [], "kernel version '4.19' is not modelled; known: 5.5"),
        ("5.10", ["deadbeef"], [], "no fix or mutant is named 'deadbeef'"),
        ("5.10", ["876673364161"], ["876673364161"], "is asked for with --with and with --without"),
        ("5.9", ["638e4b825d52"], [], "makes no sense without 1e6c62a88215"),
        (
            "6.8",
            ["mutant:inner-free-rcu-only", "mutant:inner-free-trace-only"],
            [],
            "exclude each other",
        ),
    ],
)
def test_impossible_machines_are_refused(
    version: str, add: list[str], remove: list[str], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        inner_map_replace.prepare(version=version, add=add, remove=remove)


def test_a_mutant_brings_what_it_needs() -> None:
    program = inner_map_replace.prepare(version="5.12", add=["mutant:inner-free-rcu-only"])

    assert Fix.DEFER_INNER_MAP_FREE.id in program.machine.environment["fixes"]


def test_what_a_kernel_refuses_names_the_error_and_its_reason() -> None:
    assert checked("map", 3) == 3
    with pytest.raises(UsageError, match="refuses the workload's map: -EINVAL: 3: exit: R0"):
        checked("map", -22, b"2: r1 = r2\n3: exit\nR0\n")

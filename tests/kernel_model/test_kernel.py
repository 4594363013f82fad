"""Versions, fixes, configuration, replaced functions."""

import inspect
import itertools
from typing import Any

import pytest

from kernel_model.boot import boot
from kernel_model.fixes import DEFAULT_VERSION, VERSIONS, Fix, describe, fix_named, fixes_of
from kernel_model.kernel import Kernel, kernel_function
from kernel_model.linux.file import FdTable
from kernel_model.linux.task import syscall
from kernel_model.rcu.tree import RcuData, rcu_read_lock_held, synchronize_rcu
from sim.cells import Cell, Struct, cell
from sim.errors import MisuseError, UsageError
from sim.macros import outcome
from sim.memory import Memory
from tests.kernel_model.support import Shared, explore

# -- versions and fixes ----------------------------------------------------------------------------


def test_the_default_is_5_10() -> None:
    kernel = boot(Memory())
    assert (kernel.version, kernel.fixes) == (DEFAULT_VERSION, fixes_of("5.10"))
    assert str(kernel) == "v5.10 model"
    assert kernel.has(Fix.SLEEPABLE)
    assert not kernel.has(Fix.DEFER_INNER_MAP_FREE)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_release_has_what_was_in_it(version: str) -> None:
    at = VERSIONS.index(version)
    for fix in Fix:
        since = fix.value.since
        assert (fix in fixes_of(version)) == (since in VERSIONS[: at + 1])


def test_releases_only_add_fixes() -> None:
    for before, after in itertools.pairwise(VERSIONS):
        assert fixes_of(before) <= fixes_of(after)


def test_every_fix_says_what_it_is() -> None:
    ids = [fix.id for fix in Fix]
    assert len(ids) == len(set(ids))
    for fix in Fix:
        mutant = fix.id.startswith("mutant:")
        assert mutant == (fix.value.since is None)
        assert mutant or (len(fix.id) == 12 and int(fix.id, 16))
        assert fix.subject
        assert all(fix_named(name) for name in fix.value.requires)


def test_unknown_versions() -> None:
    with pytest.raises(UsageError, match=r"'4\.9' is not modelled; known: 5\.5, .*6\.12"):
        fixes_of("4.9")


@pytest.mark.parametrize("name", ["876673364161", "87667336", "8766733641618f1b"])
def test_a_fix_has_its_commits_id_shortened_or_not(name: str) -> None:
    assert fix_named(name) is Fix.DEFER_INNER_MAP_FREE


@pytest.mark.parametrize("name", ["", "8766", "ffffffffffff", "mutant:no-such"])
def test_unknown_fixes(name: str) -> None:
    with pytest.raises(UsageError, match="the model knows:\n"):
        fix_named(name)


def test_fixes_come_and_go() -> None:
    base = fixes_of("5.10")
    assert fixes_of("5.10", add=["876673364161"]) == base | {Fix.DEFER_INNER_MAP_FREE}
    assert fixes_of("5.10", remove=["1e6c62a88215"]) == base - {Fix.SLEEPABLE}
    assert fixes_of("5.10", remove=["876673364161"]) == base  # was not in it


def test_a_mutant_brings_what_it_needs() -> None:
    fixes = fixes_of("5.10", add=["mutant:inner-free-rcu-only"])
    assert fixes >= {Fix.INNER_FREE_RCU_ONLY, Fix.DEFER_INNER_MAP_FREE}


@pytest.mark.parametrize(
    ("version", "add", "remove", "message"),
    [
        ("5.10", ["876673364161"], ["876673364161"], "with --with and with --without"),
        ("5.12", [], ["1e6c62a88215"], "638e4b825d52 .* makes no sense without 1e6c62a88215"),
        ("5.8", ["638e4b825d52"], [], "makes no sense without 1e6c62a88215: add --with"),
        ("6.8", ["mutant:inner-free-rcu-only"], ["876673364161"], "makes no sense without"),
    ],
)
def test_impossible_sets(version: str, add: list[str], remove: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fixes_of(version, add, remove)


def test_a_verdict_says_what_was_modelled() -> None:
    assert describe("5.10", fixes_of("5.10")) == "v5.10 model"
    assert describe("5.10", fixes_of("5.10", add=["e6c86c513f44"])) == "v5.10 model +e6c86c513f44"
    assert describe("5.10", fixes_of("5.10", remove=["1e6c62a88215"])) == (
        "v5.10 model -1e6c62a88215"
    )
    assert describe("6.8", fixes_of("6.8")).startswith("v6.8 (v5.10 model + fixes: ")


# -- configuration and static state ----------------------------------------------------------------


def test_flavours() -> None:
    full = boot(Memory(), preempt="full")
    none = boot(Memory(), preempt="none")
    assert len({full.rcu, full.rcu_tasks, full.rcu_tasks_trace}) == 3
    assert none.rcu_tasks is none.rcu
    assert none.rcu_tasks_trace is not none.rcu


def test_static_state_is_made_once_and_at_the_same_address() -> None:
    one, other = boot(Memory(), cpus=2), boot(Memory(), cpus=2)
    assert one.subsystem(FdTable) is one.subsystem(FdTable)
    assert one.subsystem(FdTable).addr == other.subsystem(FdTable).addr
    assert len(one.percpu(RcuData)) == 2
    assert one.percpu(RcuData)[0] is not one.percpu(RcuData)[1]
    assert one.domain("x") is one.domain("x")
    assert one.domain("x") is not one.domain("y")


def test_subsystems_that_were_not_booted() -> None:
    class Late(Struct):
        count: Cell[int] = cell(0)

    kernel = boot(Memory())
    assert isinstance(kernel.subsystem(Late), Late)


def test_a_kernel_without_cpus() -> None:
    with pytest.raises(UsageError, match="cpus=0"):
        boot(Memory(), cpus=0)


def test_boot_leaves_nothing_to_the_first_thread() -> None:
    """Addresses of static state must not depend on who asks first."""
    kernel = boot(Memory())
    roots = len(kernel.memory.roots)

    async def main(kernel: Kernel, shared: Shared) -> None:
        async with syscall(kernel):
            await synchronize_rcu(kernel)
            await outcome(len(kernel.memory.roots))

    ((after,),) = explore(main).outcomes
    assert after == roots + 1  # what the threads of the test share


# -- trying a patch --------------------------------------------------------------------------------


@kernel_function
async def doubles(kernel: Kernel, value: int) -> int:
    return 2 * value


@kernel_function
def halves(kernel: Kernel, value: int) -> int:
    return value // 2


def test_a_replacement_runs_instead() -> None:
    async def triples(kernel: Kernel, value: int) -> int:
        return 3 * value

    async def main(kernel: Kernel, shared: Shared) -> None:
        before = await doubles(kernel, 7)
        kernel.replace(doubles, triples)
        await outcome((before, await doubles(kernel, 7), halves(kernel, 7), kernel.replaced))

    assert explore(main).outcomes == {((14, 21, 3, ("doubles",)),)}


def test_replacing_is_for_one_kernel() -> None:
    kernel, other = boot(Memory()), boot(Memory())
    kernel.replace(halves, lambda kernel, value: value)
    assert (halves(kernel, 8), halves(other, 8)) == (8, 4)
    assert other.replaced == ()


def test_a_replaced_grace_period_breaks_what_relies_on_it() -> None:
    async def no_wait(kernel: Kernel) -> None:
        pass

    async def main(kernel: Kernel, shared: Shared) -> None:
        kernel.replace(synchronize_rcu, no_wait)
        async with syscall(kernel):
            await synchronize_rcu(kernel)

    names: list[str] = []
    explore(main, observer=lambda event: names.append(event.op.name))
    assert "synchronize_rcu" not in names


def wrong_parameters() -> Any:
    async def other(kernel: Kernel, number: int) -> int:
        return number

    return other


def not_async() -> Any:
    def other(kernel: Kernel, value: int) -> int:
        return value

    return other


@pytest.mark.parametrize(
    ("function", "mine", "message"),
    [
        (rcu_read_lock_held, lambda: True, "rcu_read_lock_held cannot be replaced"),
        (doubles, wrong_parameters(), r"has the parameters \(kernel.*number"),
        (doubles, not_async(), "both must be `async def`, or neither"),
    ],
)
def test_impossible_replacements(function: Any, mine: Any, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        boot(Memory()).replace(function, mine)


def test_a_marked_function_keeps_its_signature() -> None:
    assert list(inspect.signature(doubles).parameters) == ["kernel", "value"]
    assert doubles.__name__ == "doubles"

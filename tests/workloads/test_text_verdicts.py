"""What the workloads on patched text show on each kernel, and with each rule broken."""

from collections.abc import Sequence
from typing import Any

import pytest

from sim import ops
from sim.choosing import Strategy
from sim.errors import UsageError
from sim.events import Event
from sim.explore import Budget, Explorer, Result
from sim.strategies.pct import Pct
from sim.strategies.random_walk import RandomWalk
from sim.threads import Thread
from sim.workload import find

EXECUTE = "use-after-free-execute"
UAF = "use-after-free"
FRAME = "corrupted-frame"


FOUND_WITHIN = 300
CLEAN_FOR = 100


def explore(
    workload: str,
    strategy: Strategy,
    version: str = "5.10",
    add: tuple[str, ...] = (),
    remove: tuple[str, ...] = (),
    executions: int = FOUND_WITHIN,
    **params: Any,
) -> Result:
    program = find(workload).prepare(params, version=version, add=add, remove=remove)
    return Explorer(program, strategy, Budget(executions=executions, seconds=300)).explore()


def within(found: bool) -> int:  # reads as a sentence
    """How many executions to run: until it is found, or until it is clear that nothing is."""
    return FOUND_WITHIN if found else CLEAN_FOR


def kinds(result: Result) -> list[str]:
    return [found.finding.kind for found in result.findings]


# -- tail calls ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["5.5", "5.9", "5.10", "6.7", "6.12"])
@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
def test_poking_is_clean_on_every_kernel(version: str, strategy: type[RandomWalk | Pct]) -> None:
    params: dict[str, Any] = {"runs": "2", "reinstall": "yes"}
    result = explore("tailcall_poke", strategy(0), version, executions=CLEAN_FOR, **params)

    assert kinds(result) == []
    assert result.executions == CLEAN_FOR


@pytest.mark.parametrize("source", ["main", "subprog"])
@pytest.mark.parametrize("key", ["constant", "variable"])
def test_poking_is_clean_whatever_jumps(source: str, key: str) -> None:
    result = explore("tailcall_poke", Pct(1), source=source, key=key, runs="2", installed="yes")

    assert kinds(result) == []
    assert len(result.outcomes) > 3


@pytest.mark.parametrize(
    ("mutant", "depth", "params", "kind"),
    [
        ("install-swapped", 3, {"runs": "2"}, FRAME),
        ("remove-no-gp", 2, {"installed": "yes"}, FRAME),
        ("remove-trace-gp", 2, {"installed": "yes"}, FRAME),
        ("push-back", 3, {}, "invariant"),
        ("poke-no-int3", 3, {"runs": "2"}, "kernel-bug"),
        ("put-before-poke", 3, {"updates": "2"}, UAF),
    ],
)
def test_breaking_a_rule_of_poking_is_found(
    mutant: str, depth: int, params: dict[str, Any], kind: str
) -> None:
    mutants = (f"mutant:{mutant}",)
    result = explore("tailcall_poke", Pct(0, depth), add=mutants, executions=3000, **params)

    assert set(kinds(result)) == {kind}


def test_a_corrupted_frame_is_reported_with_the_history_of_the_sites() -> None:
    result = explore(
        "tailcall_poke",
        Pct(0, 2),
        add=("mutant:remove-no-gp",),
        executions=3000,
        installed="yes",
    )
    finding = result.findings[0].finding
    told = [detail.heading for detail in finding.details]

    assert finding.title == "BUG: corrupted frame of bpf_prog_caller: wrong registers"
    assert "rbx is" in told[0]
    state = next(d for d in finding.details if d.heading.startswith("State of tail call 0"))
    assert [line.rpartition("# ")[2] for line in state.lines if "#" in line] == [
        "tailcall_bypass",
        "tailcall_target",
    ]
    assert any(heading.startswith("History of tailcall_bypass") for heading in told)
    assert any(heading.startswith("History of tailcall_target") for heading in told)


@pytest.mark.parametrize(
    ("installed", "change", "kind"),
    [
        ("yes", "update", "kernel-bug"),
        ("yes", "delete", EXECUTE),
        ("no", "update", "kernel-bug"),
    ],
)
def test_the_load_window_of_v5_10(installed: str, change: str, kind: str) -> None:
    def search(version: str) -> list[str]:
        strategy = RandomWalk(0)
        return kinds(
            explore("tailcall_load_window", strategy, version, installed=installed, change=change)
        )

    assert search("5.10") == [kind]
    assert search("6.7") == []


@pytest.mark.parametrize("mutant", ["stable-first", "fixup-unlocked"])
def test_the_stable_flag_comes_last_and_under_the_mutex(mutant: str) -> None:
    mutants = (f"mutant:{mutant}",)
    result = explore("tailcall_load_window", Pct(0), "6.7", mutants, executions=3000)

    assert kinds(result) in ([EXECUTE], ["kernel-bug"], [FRAME], ["data-race"])


@pytest.mark.parametrize(
    ("version", "source", "add", "found"),
    [
        ("5.10", "subprog", (), True),
        ("5.14", "subprog", (), False),
        ("5.10", "subprog", ("f263a81451c1",), False),
        ("5.10", "main", (), False),
        ("5.14", "main", ("mutant:no-untrack",), True),
    ],
)
def test_functions_of_freed_programs_are_forgotten(
    version: str, source: str, add: tuple[str, ...], *, found: bool
) -> None:
    result = explore(
        "tailcall_subprog_untrack", RandomWalk(0), version, add, (), within(found), source=source
    )

    assert kinds(result) == [UAF] * found


@pytest.mark.parametrize(
    ("version", "params", "runs"),
    [
        ("5.10", {"shape": "chain"}, 34),
        ("5.9", {"shape": "chain"}, 34),
        ("5.10", {"shape": "subprog"}, 34),
        ("6.12", {"shape": "tree"}, 34),
        ("6.1", {"shape": "subprog", "depth": "12"}, 34),
        ("5.10", {"shape": "tree"}, None),
        ("5.10", {"shape": "subprog", "depth": "12"}, None),
    ],
)
def test_33_tail_calls_succeed(version: str, params: dict[str, Any], runs: int | None) -> None:
    result = explore("tailcall_counter", RandomWalk(0), version, executions=1, **params)

    assert kinds(result) == (["unbounded-loop"] if runs is None else [])
    assert list(result.outcomes) == ([] if runs is None else [(runs,)])


def test_functions_may_not_tail_call_before_v5_10() -> None:
    with pytest.raises(UsageError, match="-EINVAL"):
        explore("tailcall_poke", RandomWalk(0), "5.9", source="subprog")


def test_a_prog_array_is_cleared_when_its_last_user_is_gone_and_not_before() -> None:
    assert kinds(explore("prog_array_clear", RandomWalk(0))) == []
    assert kinds(explore("prog_array_clear", RandomWalk(0), remove=("c9da161c6517",))) == [
        "invariant"
    ]


# -- trampolines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
def test_fexit_on_a_function_that_sleeps_finds_its_text_from_v5_12_on(
    strategy: type[RandomWalk | Pct],
) -> None:
    """The programs are another matter: see docs/verdicts.md."""
    result = explore("trampoline_update", strategy(0), "5.14", kind="fexit", sleeps="yes")

    assert FRAME not in kinds(result)
    assert not [f for f in result.findings if "bpf_trampoline" in f.finding.title]


@pytest.mark.parametrize(
    ("version", "add", "found"),
    [
        ("5.10", (), True),
        ("5.12", (), False),
        ("6.12", (), False),
        ("5.10", ("e21aa341785c",), False),
    ],
)
def test_fexit_on_a_function_that_sleeps_returns_into_other_text_before_v5_12(
    version: str, add: tuple[str, ...], *, found: bool
) -> None:
    result = explore("trampoline_fexit_sleep", Pct(0), version, add, (), within(found))

    assert kinds(result) == [EXECUTE] * found
    assert all("(orig)" in found.finding.title for found in result.findings)


@pytest.mark.parametrize(
    ("version", "add", "remove", "found"),
    [
        ("5.5", (), (), True),
        ("5.6", (), (), False),
        ("5.10", (), (), False),
        ("5.5", ("05d57f1793fb",), (), False),
        ("5.10", ("mutant:tramp-no-tasks",), (), True),
        ("5.10", ("mutant:tramp-no-trace",), (), False),  # nobody sleeps
    ],
)
@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
def test_a_half_is_not_written_under_a_preempted_task_from_v5_6_on(
    strategy: type[RandomWalk | Pct],
    version: str,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    *,
    found: bool,
) -> None:
    result = explore("trampoline_halfpage", strategy(0), version, add, remove, within(found))

    assert kinds(result) == [EXECUTE] * found


@pytest.mark.parametrize("map_type", ["array", "hash"])
@pytest.mark.parametrize("strategy", [RandomWalk, Pct])
def test_a_map_shared_with_a_sleeping_program_outlives_it(
    strategy: type[RandomWalk | Pct], map_type: str
) -> None:
    result = explore(
        "sleepable_vs_nonsleepable", strategy(0), executions=CLEAN_FOR, map_type=map_type
    )

    assert kinds(result) == []


def test_a_sleepable_program_may_not_use_a_hash_that_allocates() -> None:
    with pytest.raises(UsageError, match="only use preallocated hash maps"):
        explore("sleepable_vs_nonsleepable", RandomWalk(0), map_type="hash_no_prealloc")


class Asleep:
    """Lets a caller run until it sleeps in a sleepable program, then the others, then it again.

    It begins when the updater has attached its program, and the others go on until they have
    rewritten so many halves, or wait for it.
    """

    kinds = frozenset({ops.SECTION_BEGIN, ops.SECTION_END, ops.REWRITE})

    def __init__(self, halves: int) -> None:
        self._attached = self._inside = self._asleep = False
        self._left = halves
        self._runs = 0

    def begin(self) -> bool:
        self._runs += 1
        return self._runs == 1

    def observe(self, event: Event) -> None:
        if event.op.kind == ops.REWRITE:
            self._left -= self._asleep
        elif event.thread.name == "updater":
            self._attached |= event.op.name == "close"
        elif event.thread.name == "caller0":
            domain, kind = event.op.target.name, event.op.kind
            self._inside |= domain == "rcu_tasks_trace" and kind == ops.SECTION_BEGIN
            self._asleep |= self._inside and domain == "rcu_tasks" and kind == ops.SECTION_END

    def pick(self, enabled: Sequence[Thread], last: Thread | None) -> int:
        del last
        held = self._left > 0 if self._asleep else not self._attached
        wanted = [i for i, t in enumerate(enabled) if (t.name == "caller0") != held]
        return wanted[0] if wanted else 0

    def choose(self, thread: Thread, n: int) -> int:
        del thread
        return n - 1


def asleep(add: tuple[str, ...]) -> set[str]:
    """Where in the trampoline a task finds other text that has slept in a program all the while."""
    program = find("trampoline_update").prepare(
        {"teardown": "no", "plain": "no", "updates": "2"}, add=add
    )
    results = [Explorer(program, Asleep(n), Budget(), keep_going=True).explore() for n in (1, 2, 3)]
    titles = [found.finding.title for result in results for found in result.findings]
    return {title.rpartition(" ")[2] for title in titles}


def test_the_trace_grace_period_keeps_a_half_from_who_sleeps_in_its_program() -> None:
    """Who sleeps in the program before the half is to be reused is waited for, and only so."""
    assert asleep(()) == set()
    assert asleep(("mutant:tramp-no-trace",)) == {"(prog)"}

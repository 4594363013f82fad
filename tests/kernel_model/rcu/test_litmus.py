"""What readers and updaters can see, exactly, per flavour and with and without preemption."""

import pytest

from tests.kernel_model.rcu.litmus import Code, Outcomes, Program, on_the_law, on_the_model

ANY: Outcomes = {(0, 0), (0, 1), (1, 0), (1, 1)}
PROTECTED = ANY - {(0, 1)}  # x is old, so the grace period waits, so y is old


def update(flavour: str) -> Code:
    return "x=1", f"sync {flavour}", "y=1"


def reader(flavour: str) -> Code:
    return f"lock {flavour}", "x", "y", f"unlock {flavour}"


# name: program, outcomes without preemption, outcomes with it
LITMUS: dict[str, tuple[Program, Outcomes, Outcomes]] = {
    "message_passing": ((("x=1", "y=1"), ("y", "x")), ANY - {(1, 0)}, ANY - {(1, 0)}),
    "store_buffering": ((("x=1", "y"), ("y=1", "x")), ANY - {(0, 0)}, ANY - {(0, 0)}),
    "message_passing_through_a_grace_period": (
        (update("rcu"), ("y", "x")),
        ANY - {(1, 0)},
        ANY - {(1, 0)},
    ),
    "reader_before_or_after": (
        (("x=1", "sync rcu", "z"), ("lock rcu", "x", "z=1", "unlock rcu")),
        ANY - {(0, 0)},
        ANY - {(0, 0)},
    ),
    "rcu_reader": ((update("rcu"), reader("rcu")), PROTECTED, PROTECTED),
    "no_reader": ((update("rcu"), ("x", "y")), PROTECTED, ANY),
    "nested_readers": (
        (update("rcu"), ("lock rcu", "lock rcu", "x", "unlock rcu", "y", "unlock rcu")),
        PROTECTED,
        PROTECTED,
    ),
    "two_readers": (
        (update("rcu"), ("lock rcu", "x", "unlock rcu", "lock rcu", "y", "unlock rcu")),
        PROTECTED,
        ANY,
    ),
    "two_readers_and_a_sleep": (
        (update("rcu"), ("lock rcu", "x", "unlock rcu", "sleep", "lock rcu", "y", "unlock rcu")),
        ANY,
        ANY,
    ),
    "trace_reader": ((update("trace"), reader("trace")), PROTECTED, PROTECTED),
    "nested_trace_readers": (
        (update("trace"), ("lock trace", "lock trace", "x", "unlock trace", "y", "unlock trace")),
        PROTECTED,
        PROTECTED,
    ),
    "two_trace_readers": (
        (update("trace"), ("lock trace", "x", "unlock trace", "lock trace", "y", "unlock trace")),
        ANY,
        ANY,
    ),
    "sleeping_trace_reader": (
        (update("trace"), ("lock trace", "x", "sleep", "y", "unlock trace")),
        PROTECTED,
        PROTECTED,
    ),
    "trace_reader_rcu_grace_period": ((update("rcu"), reader("trace")), PROTECTED, ANY),
    "sleeping_trace_reader_rcu_grace_period": (
        (update("rcu"), ("lock trace", "x", "sleep", "y", "unlock trace")),
        ANY,
        ANY,
    ),
    "rcu_reader_trace_grace_period": ((update("trace"), reader("rcu")), ANY, ANY),
    "running_task": ((update("tasks"), ("x", "y")), PROTECTED, PROTECTED),
    "sleeping_task": ((update("tasks"), ("x", "sleep", "y")), ANY, ANY),
    "sleeping_trace_reader_tasks_grace_period": (
        (update("tasks"), ("lock trace", "x", "sleep", "y", "unlock trace")),
        ANY,
        ANY,
    ),
    "inner_rcu_reader": (
        (update("rcu"), ("lock trace", "lock rcu", "x", "unlock rcu", "y", "unlock trace")),
        PROTECTED,
        ANY,
    ),
    "overlapping_readers": (
        (update("trace"), ("lock rcu", "lock trace", "x", "unlock rcu", "y", "unlock trace")),
        PROTECTED,
        PROTECTED,
    ),
    "two_updaters": (
        (("x=1", "sync rcu", "y"), ("y=1", "sync rcu", "x")),
        ANY - {(0, 0)},
        ANY - {(0, 0)},
    ),
    "flavours_side_by_side": (
        (("x=1", "sync rcu", "sync trace", "y=1"), ("lock rcu", "x", "unlock rcu", "sleep", "y")),
        ANY,
        ANY,
    ),
}


@pytest.mark.parametrize("name", LITMUS)
def test_without_preemption(name: str) -> None:
    program, expected, _ = LITMUS[name]

    assert expected == on_the_law(program, "none")
    assert expected == on_the_model(program, "none")


@pytest.mark.parametrize("name", LITMUS)
def test_with_preemption(name: str) -> None:
    program, _, expected = LITMUS[name]

    assert expected == on_the_law(program, "full")
    assert expected == on_the_model(program, "full")


def test_two_readers_one_updater() -> None:
    """The second reader, begun after the grace period, sees what the first could not."""
    program: Program = (("x=1", "sync rcu", "y=1"), reader("rcu"), reader("rcu"))
    one = {(0, 0), (1, 0), (1, 1)}
    expected = {(*first, *second) for first in one for second in one}

    assert expected == on_the_law(program, "full")


def test_a_trace_grace_period_may_contain_an_rcu_one() -> None:
    program = (update("trace"), reader("rcu"))

    assert on_the_model(program, "full", fixes=["e6c86c513f44"]) == PROTECTED
    assert on_the_model(program, "none", fixes=["e6c86c513f44"]) == PROTECTED

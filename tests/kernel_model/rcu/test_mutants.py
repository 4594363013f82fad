"""Each rule of the RCU model is needed: without it, a test that passes otherwise fails."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kernel_model.linux import task
from kernel_model.linux.task import Context, context, sleeping
from kernel_model.rcu import sync, tasks_trace, tree, update
from kernel_model.rcu.tasks_trace import rcu_read_lock_trace
from kernel_model.rcu.tree import rcu_read_lock
from sim.macros import note
from sim.ops import Op
from sim.threads import current
from tests.kernel_model.rcu import test_callbacks, test_litmus

Patch = pytest.MonkeyPatch


Mutant = Callable[[Patch], None]


def no_op(*args: Any, **kwargs: Any) -> Op[None]:
    return note("left out")


def nothing(*args: Any) -> Iterator[Op[None]]:
    return iter(())


def grace_periods_wait_for_nobody(patch: Patch) -> None:
    patch.setattr(update, "gp_end", no_op)


def readers_are_not_seen(patch: Patch) -> None:
    patch.setattr(rcu_read_lock, "enter", nothing)
    patch.setattr(rcu_read_lock, "leave", nothing)


def trace_readers_are_not_seen(patch: Patch) -> None:
    patch.setattr(rcu_read_lock_trace, "enter", nothing)
    patch.setattr(rcu_read_lock_trace, "leave", nothing)


def inner_unlock_ends_the_reader(patch: Patch) -> None:
    def leave(guard: rcu_read_lock) -> Iterator[Op[None]]:
        ctx = context()
        ctx.rcu_nesting = 0
        return ctx.settle("rcu_read_unlock")

    patch.setattr(rcu_read_lock, "leave", leave)


def inner_trace_unlock_ends_the_reader(patch: Patch) -> None:
    def leave(guard: rcu_read_lock_trace) -> Iterator[Op[None]]:
        ctx = context()
        ctx.trace_nesting = 0
        return ctx.settle("rcu_read_unlock_trace")

    patch.setattr(rcu_read_lock_trace, "leave", leave)


def sleeping_is_no_quiescent_state(patch: Patch) -> None:
    patch.setattr(sleeping, "enter", nothing)
    patch.setattr(sleeping, "leave", nothing)


def sleeping_ends_a_trace_reader(patch: Patch) -> None:
    settle = Context.settle

    def settles(ctx: Context, name: str) -> Iterator[Op[None]]:
        nesting = ctx.trace_nesting
        ctx.trace_nesting = 0 if ctx.asleep else nesting
        yield from settle(ctx, name)
        ctx.trace_nesting = nesting

    patch.setattr(Context, "settle", settles)


def running_tasks_are_not_seen(patch: Patch) -> None:
    begin = task.enter_kernel

    def enter(name: str) -> Iterator[Op[None]]:
        current().context.tasks_reader = False
        return begin(name)

    patch.setattr(task, "enter_kernel", enter)


def flavours_are_one(patch: Patch) -> None:
    patch.setattr(tasks_trace, "_domains", lambda kernel: (kernel.rcu,))


def trace_never_implies_rcu(patch: Patch) -> None:
    patch.setattr(tasks_trace, "rcu_trace_implies_rcu_gp", lambda kernel: False)


def callbacks_do_not_queue(patch: Patch) -> None:
    patch.setattr(update, "xchg", no_op)


def atomic_regions_are_not_seen(patch: Patch) -> None:
    patch.setattr(Context, "atomic", property(lambda ctx: False))


def barriers_wait_for_nobody(patch: Patch) -> None:
    patch.setattr(tree, "__wait_rcu_gp", returns_at_once)


async def returns_at_once(*args: Any) -> None:
    await note("left out")


def mult_waits_for_the_first_only(patch: Patch) -> None:
    async def wait(name: str, *domains: Any) -> None:
        await update.__wait_rcu_gp(name, domains[0])

    patch.setattr(sync, "__wait_rcu_gp", wait)


ON_LITMUS: list[tuple[Mutant, str, str]] = [
    (grace_periods_wait_for_nobody, "rcu_reader", "none"),
    (grace_periods_wait_for_nobody, "rcu_reader", "full"),
    (grace_periods_wait_for_nobody, "trace_reader", "full"),
    (grace_periods_wait_for_nobody, "running_task", "full"),
    (grace_periods_wait_for_nobody, "reader_before_or_after", "full"),
    (readers_are_not_seen, "rcu_reader", "full"),
    (trace_readers_are_not_seen, "trace_reader", "none"),
    (inner_unlock_ends_the_reader, "nested_readers", "full"),
    (inner_trace_unlock_ends_the_reader, "nested_trace_readers", "full"),
    (sleeping_is_no_quiescent_state, "two_readers_and_a_sleep", "none"),
    (sleeping_is_no_quiescent_state, "sleeping_task", "full"),
    (sleeping_ends_a_trace_reader, "sleeping_trace_reader", "full"),
    (running_tasks_are_not_seen, "running_task", "full"),
    (flavours_are_one, "trace_reader", "full"),
    (flavours_are_one, "rcu_reader_trace_grace_period", "full"),
]

WITH_RCU = {"flavour": "rcu", "preempt": "full"}
ON_CALLBACKS: list[tuple[Mutant, Callable[..., None], dict[str, str]]] = [
    (
        grace_periods_wait_for_nobody,
        test_callbacks.test_a_callback_comes_after_a_grace_period,
        WITH_RCU,
    ),
    (callbacks_do_not_queue, test_callbacks.test_callbacks_of_a_cpu_run_in_order, WITH_RCU),
    (callbacks_do_not_queue, test_callbacks.test_callbacks_of_one_queue_never_overlap, {}),
    (atomic_regions_are_not_seen, test_callbacks.test_a_callback_is_a_reader, {}),
    (
        barriers_wait_for_nobody,
        test_callbacks.test_a_barrier_waits_for_callbacks_queued_before,
        WITH_RCU,
    ),
    (
        mult_waits_for_the_first_only,
        test_callbacks.test_mult_waits_for_each_flavour,
        {"flavour": "trace", "preempt": "full"},
    ),
    (
        trace_never_implies_rcu,
        test_litmus.test_a_trace_grace_period_may_contain_an_rcu_one,
        {},
    ),
]


def name_of(value: Any) -> str:
    return str(getattr(value, "__name__", ""))


@pytest.mark.parametrize(("mutate", "name", "preempt"), ON_LITMUS, ids=name_of)
def test_litmus_fails(mutate: Mutant, name: str, preempt: str, monkeypatch: Patch) -> None:
    modes = {
        "none": test_litmus.test_without_preemption,
        "full": test_litmus.test_with_preemption,
    }
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        modes[preempt](name)


@pytest.mark.parametrize(("mutate", "test", "arguments"), ON_CALLBACKS, ids=name_of)
def test_other_test_fails(
    mutate: Mutant, test: Callable[..., None], arguments: dict[str, str], monkeypatch: Patch
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        test(**arguments)

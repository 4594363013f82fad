"""include/linux/preempt.h and include/linux/bottom_half.h, v5.10: regions that keep the CPU.

All of them nest.  The outermost one takes the CPU and makes the task an RCU reader; what that
means is said in `kernel_model.linux.task`.

Not modelled: interrupts and softirqs on the CPU that the regions keep out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from kernel_model.linux.task import Guard, context
from sim.ops import Op


@final
class preempt_disable(Guard):
    """No preemption."""

    def enter(self) -> Iterator[Op[None]]:
        return preempt_off("preempt_disable")

    def leave(self) -> Iterator[Op[None]]:
        return preempt_on("preempt_enable")


@final
class migrate_disable(Guard):
    """No migration, which in v5.10 is no preemption."""

    def enter(self) -> Iterator[Op[None]]:
        return preempt_off("migrate_disable")

    def leave(self) -> Iterator[Op[None]]:
        return preempt_on("migrate_enable")


@final
class local_irq_save(Guard):
    """No interrupts on this CPU."""

    def enter(self) -> Iterator[Op[None]]:
        return irqs_off("local_irq_save")

    def leave(self) -> Iterator[Op[None]]:
        return irqs_on("local_irq_restore")


@final
class local_bh_disable(Guard):
    """No bottom halves on this CPU."""

    def enter(self) -> Iterator[Op[None]]:
        return bh_off("local_bh_disable")

    def leave(self) -> Iterator[Op[None]]:
        return bh_on("local_bh_enable")


def preempt_off(name: str) -> Iterator[Op[None]]:
    """The operations, called `name`, with which a region without preemption begins."""
    ctx = context()
    ctx.preempt_count += 1
    return ctx.settle(name)


def preempt_on(name: str) -> Iterator[Op[None]]:
    """The operations, called `name`, with which a region without preemption ends."""
    ctx = context()
    ctx.preempt_count -= 1
    return ctx.settle(name)


def irqs_off(name: str) -> Iterator[Op[None]]:
    """The operations, called `name`, with which a region without interrupts begins."""
    ctx = context()
    ctx.irqs_disabled += 1
    return ctx.settle(name)


def irqs_on(name: str) -> Iterator[Op[None]]:
    """The operations, called `name`, with which a region without interrupts ends."""
    ctx = context()
    ctx.irqs_disabled -= 1
    return ctx.settle(name)


def bh_off(name: str) -> Iterator[Op[None]]:
    """The operations, called `name`, with which a region without bottom halves begins."""
    ctx = context()
    ctx.bh_disabled += 1
    return ctx.settle(name)


def bh_on(name: str) -> Iterator[Op[None]]:
    """The operations, called `name`, with which a region without bottom halves ends."""
    ctx = context()
    ctx.bh_disabled -= 1
    return ctx.settle(name)

"""include/linux/spinlock.h, v5.10: locks for which a CPU waits busily.

A lock is a cell of the object that it protects: ``bucket_lock: Cell[Thread | None] = cell(None)``.

Not modelled: raw and ticket variants; queued fairness (any waiter may be next).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

from kernel_model.linux.preempt import bh_off, bh_on, irqs_off, irqs_on, preempt_off, preempt_on
from kernel_model.linux.task import Guard, context
from sim.cells import Cell
from sim.macros import lock, unlock
from sim.ops import Op
from sim.threads import Thread


@final
class spin_lock(Guard):
    """Hold the lock; no preemption meanwhile."""

    def __init__(self, place: Cell[Thread | None]) -> None:
        self._place: Final = place

    def enter(self) -> Iterator[Op[None]]:
        yield from _take(self._place, "spin_lock")

    def leave(self) -> Iterator[Op[None]]:
        yield from _drop(self._place, "spin_unlock")


@final
class spin_lock_irqsave(Guard):
    """Hold the lock; no interrupts meanwhile."""

    def __init__(self, place: Cell[Thread | None]) -> None:
        self._place: Final = place

    def enter(self) -> Iterator[Op[None]]:
        yield from irqs_off("spin_lock_irqsave")
        yield from _take(self._place, "spin_lock_irqsave")

    def leave(self) -> Iterator[Op[None]]:
        yield from _drop(self._place, "spin_unlock_irqrestore")
        yield from irqs_on("spin_unlock_irqrestore")


@final
class spin_lock_bh(Guard):
    """Hold the lock; no bottom halves meanwhile."""

    def __init__(self, place: Cell[Thread | None]) -> None:
        self._place: Final = place

    def enter(self) -> Iterator[Op[None]]:
        yield from bh_off("spin_lock_bh")
        yield from _take(self._place, "spin_lock_bh")

    def leave(self) -> Iterator[Op[None]]:
        yield from _drop(self._place, "spin_unlock_bh")
        yield from bh_on("spin_unlock_bh")


def _take(place: Cell[Thread | None], name: str) -> Iterator[Op[None]]:
    yield from preempt_off(name)
    yield lock(place, name)
    context().locks.append(place)


def _drop(place: Cell[Thread | None], name: str) -> Iterator[Op[None]]:
    context().forget_lock(place)
    yield unlock(place, name)
    yield from preempt_on(name)

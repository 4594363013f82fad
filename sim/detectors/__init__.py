"""Detectors: each watches the events of one execution and reports what is wrong.

They only observe, a fresh set for every execution; order matters, because some ask others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.detectors.crash import Crash
from sim.detectors.data_race import DataRace
from sim.detectors.deadlock import Deadlock
from sim.detectors.happens_before import HappensBefore
from sim.detectors.leak import Leak
from sim.detectors.lifetime import Lifetime, Prediction
from sim.detectors.loop import Livelock
from sim.detectors.refcount import Refcount
from sim.events import Detector

if TYPE_CHECKING:
    from sim.memory import Memory

__all__ = ["Prediction", "standard_detectors"]


def standard_detectors(
    memory: Memory, predictions: list[Prediction] | None = None
) -> list[Detector]:
    """The detectors for one execution on `memory`, in the order in which they must observe.

    predictions  a list that is filled with predicted uses after free (None: they are dropped)
    """
    order = HappensBefore(memory.log)
    return [
        order,
        Lifetime(order, memory, predictions),
        DataRace(order, memory),
        Refcount(),
        Crash(),
        Deadlock(),
        Leak(memory),
        Livelock(memory),
    ]

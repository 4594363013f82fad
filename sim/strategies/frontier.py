"""What is left of a complete search, shared out: which plans there are, and who is at work.

A *unit* is one plan (`sim.strategies.dpor`).  Whoever explores it is a search of its own, and comes
back with the plans that it has not come to.  Nothing else goes to and fro, for what a plan leads to
depends on nothing but the plan.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Final, final

from sim.strategies.plans import WHOLE
from sim.strategies.steps import Packed


@final
@dataclass(frozen=True, eq=False)
class Unit:
    """One plan, as a search (`Dpor.packed`)."""

    packed: Packed


@final
class Frontier:
    """All that is left of a search (`Dpor.packed`).

    units  those that are being explored
    """

    def __init__(self, left: Packed = WHOLE) -> None:
        self.units: Final[dict[Unit, None]] = {}
        # By their first place, then as they came: a path, and the plans at places along it.
        self._rests: Final[list[tuple[int, int, Packed]]] = []
        self._came = 0
        self._free = 0
        self._contended: Final[set[int]] = set()
        self._add(left)

    @property
    def done(self) -> bool:
        """Whether nothing is left, and nobody is at work."""
        return not self.units and not self._free

    def free(self) -> int:
        """How many plans can be claimed."""
        return self._free

    def claim(self) -> Unit | None:
        """A plan to explore: at a place that has as few steps before it as any."""
        if not self._rests:
            return None
        place, came, (path, plans) = heapq.heappop(self._rests)
        unit = Unit([sorted(self._contended), [[path[: place - 1], plans[:1]]]])
        if len(plans) > 1:
            heapq.heappush(self._rests, (plans[1][0], came, [path, plans[1:]]))
        self._free -= 1
        self.units[unit] = None
        return unit

    def give_back(self, unit: Unit) -> None:
        """Whoever explored it is gone: somebody else has to."""
        self.done_with(unit, unit.packed)

    def done_with(self, unit: Unit, left: Packed) -> None:
        """A unit has come back, and with it what is left of it."""
        del self.units[unit]
        self._add(left)

    def _add(self, left: Packed) -> None:
        contended, rests = left
        self._contended.update(contended)
        for path, plans in rests:
            if plans:
                heapq.heappush(self._rests, (plans[0][0], self._came, [path, plans]))
                self._came += 1
                self._free += len(plans)

    def packed(self) -> Packed:
        """All that is left, units in other hands included."""
        rests: Packed = [rest for unit in self.units for rest in unit.packed[1]]
        rests += [rest for _, _, rest in sorted(self._rests, key=lambda entry: entry[:2])]
        return [sorted(self._contended), rests]

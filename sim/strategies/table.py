"""Steps by number: what a search tells of many executions names few different steps."""

from __future__ import annotations

from typing import Any, Final, final

from sim import ops
from sim.strategies.steps import Packed, Step


@final
class Table:
    """Steps in the order in which they were first numbered, as plain data in `packed`."""

    def __init__(self, packed: Packed | None = None) -> None:
        self.packed: Final[Packed] = [] if packed is None else packed
        self._numbers: Final[dict[Any, int]] = {}
        self._steps: Final[dict[int, Step]] = {}

    def number(self, step: Step) -> int:
        """The number of a step."""
        op = step.op
        kind = op.kind
        cells = tuple((c.addr, c.size) for c in op.operand[1]) if kind == ops.WAIT else ()
        key = (step.key, step.cpu, kind, op.addr, op.size, cells, step.value, step.fatal)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.packed)
            self.packed.append(step.packed())
        return number

    def step(self, number: int) -> Step:
        """The step of a number: the same object each time, not to be changed."""
        step = self._steps.get(number)
        if step is None:
            step = self._steps[number] = Step.unpacked(self.packed[number])
        return step

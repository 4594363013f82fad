"""Fatal steps in a complete search (`sim.strategies.dpor`): what is done behind them, and once."""

from __future__ import annotations

from typing import Final, final

from sim.strategies.history import History
from sim.strategies.plans import Plan
from sim.strategies.races import Races
from sim.strategies.steps import Clock, Step


@final
class Fatal:
    """Says who goes on instead of a fatal step, and which ways to one have been taken."""

    def __init__(self, history: History, races: Races) -> None:
        self._history: Final = history
        self._races: Final = races
        self._seen = False  # whether anything came instead of a fatal step

    def instead_of(self, but: tuple[int, ...], step: Step) -> None:
        """`step` has come instead of steps of the threads with these keys."""
        step.but = but
        self._seen = self._seen or bool(but)

    def others(self) -> Plan | None:
        """A plan that others go on instead of the last step, if that came of itself and is fatal.

        None as well if nobody else could have gone on there.
        """
        end = self._history.steps[-1]
        if not end.fatal or end.lead is not None:
            return None
        but = (*end.but, end.key)
        return Plan([], -1, but) if self._races.others_able(but) else None

    def known(self, first: int, second: Step, index: int, clock: Clock) -> bool:
        """Whether `second`, at `index`, has ended an execution as it would end one before `first`.

        That is so if others went on instead of it, and nothing since then happens before it.

        clock  what happens before `second` without `first`
        """
        if not self._seen:
            return False
        steps = self._history.steps
        for at in range(index - 1, 0, -1):
            step = steps[at]
            if step.time <= clock[step.number] or (at < first and second.meets(step)):
                return False
            if second.key in step.but:
                return True
        return False

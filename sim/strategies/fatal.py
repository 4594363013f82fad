"""Fatal steps in a complete search (`sim.strategies.dpor`): what is done behind them, and once."""

from __future__ import annotations

from typing import Final, final

from sim import ops
from sim.strategies.history import History
from sim.strategies.plans import Plan
from sim.strategies.races import Races
from sim.strategies.steps import CHOICE, Clock, Lead, Step
from sim.threads import Thread


@final
class Fatal:
    """Says who goes on instead of a fatal step, and which ways to one have been taken."""

    def __init__(self, history: History, races: Races) -> None:
        self._history: Final = history
        self._races: Final = races
        self._seen = False  # whether anything came instead of a fatal step
        self._seen_values = False  # whether a choice was fatal

    def planned(self, lead: Lead) -> None:
        """A step has been planned by `lead`."""
        if lead.values or (lead.value and not lead.fixed):
            self._seen_values = True

    def instead_of(self, but: tuple[int, ...], step: Step) -> None:
        """`step` has come instead of steps of the threads with these keys."""
        step.but = but
        self._seen = self._seen or bool(but)

    def is_so_in_all_values(self) -> bool:
        """Whether the last step, which is fatal, came of itself, and is so whatever it chooses.

        With another value, of which that is not known, it lets all others do what they could have
        done before it: a choice is dependent on nothing.
        """
        end = self._history.steps[-1]
        return end.lead is None and not self.otherwise(end, len(self._history.steps) - 1)

    def others(self) -> Plan | None:
        """A plan that others go on instead of the last step; None as well if nobody else could."""
        end = self._history.steps[-1]
        if not end.fatal:
            return None
        but = (*end.but, end.key)
        return Plan([], -1, but) if self._races.others_able(but) else None

    # -- values of fatal choices -------------------------------------------------------------------

    def otherwise(self, step: Step, index: int) -> list[Lead]:
        """The other values to be tried of a choice, at `index`, the first of them last.

        One after the other as long as they are fatal: the first that is not is the one that the
        step chooses of itself.
        """
        if step.op.kind != ops.CHOOSE or step.lead is not None:
            return []
        clock = step.clock + [0] * (len(self._history.of) - len(step.clock))
        if self.known(index, step, index, clock):
            return []
        values = range(step.value + 1, step.op.operand)
        if step.fatal:
            return [Lead(step.key, value, fixed=False, but=step.but) for value in values[:1]]
        return [Lead(step.key, value, CHOICE, but=step.but) for value in reversed(values)]

    def values(self, first: int, index: int, clock: Clock) -> tuple[tuple[int, int], ...]:
        """Which threads will stand before a choice behind a plan, and the first value to try.

        The plan moves step `index` before step `first`; clock: what happens before it then.
        """
        steps = self._history.steps
        end = steps[-1]
        if not self._seen_values and not (end.fatal and end.op.kind == ops.CHOOSE):
            return ()
        found: dict[int, int] = {}
        for at in range(first, len(steps)):
            step = steps[at]
            if step.time <= clock[step.number]:
                found.pop(step.key, None)
                if step.lead is not None and at < index:
                    for key, value in step.lead.values:
                        if self._stays(self._history.number_of(key), at, first, clock):
                            found[key] = value
            elif step.lead is None:
                value = step.value
                if step.fatal and step.op.kind == ops.CHOOSE:
                    value = min(value + 1, step.op.operand - 1)
                if value and self._stays(step.number, at, first, clock):
                    found[step.key] = value
        return tuple(found.items())

    def first_value(self, thread: Thread) -> int:
        """The first value to try of a choice that `thread` stands before."""
        if not self._seen_values or thread.pending is None or thread.pending.kind != ops.CHOOSE:
            return 0
        for step in reversed(self._history.steps):
            if step.key == thread.key:
                break
            if step.lead is not None:
                for key, value in step.lead.values:
                    if key == thread.key:
                        return value
        return 0

    def _stays(self, number: int, at: int, first: int, clock: Clock) -> bool:
        """Whether a plan leaves all that a thread has done before step `at` as it is.

        What lies before `first` stays, and what happens before the step that is moved.
        """
        own = self._history.of[number]
        taken = sum(1 for index in own if index < at)
        before = own[taken - 1] if taken else self._history.born.get(number, 0)
        other = self._history.steps[before]
        return before < first or other.time <= clock[other.number]

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

"""Plans: the executions that are left of a complete search (`sim.strategies.dpor`)."""

from __future__ import annotations

from typing import Final, final

from sim.strategies.steps import Lead, Packed


@final
class Plan:
    """What to do from some place on.

    leads  the steps to take, in order
    then   key of the thread that goes on behind them, if it can; -1: whoever does
    but    keys of threads that do not, for their steps are fatal there
    """

    __slots__ = ("but", "leads", "then")

    def __init__(self, leads: list[Lead], then: int, but: tuple[int, ...] = ()) -> None:
        self.leads: Final = leads
        self.then: Final = then
        self.but: Final = but


@final
class Rest:
    """Plans that are left for later, at places along one path.

    path   the steps to the last of the places, behind the start of the main thread
    plans  by place: before step 0, 1, 2 ...
    """

    __slots__ = ("number", "path", "plans")

    def __init__(self, path: list[Lead], plans: list[list[Plan]]) -> None:
        self.path: Final = path
        self.plans: Final = plans
        self.number: Final = sum(map(len, plans))

    def packed(self) -> Packed:
        """As plain data: the path, and of every plan the place, the steps, who is next, who not."""
        return [
            [lead.packed() for lead in self.path],
            [
                [place, [lead.packed() for lead in plan.leads], plan.then, list(plan.but)]
                for place, plans in enumerate(self.plans)
                for plan in plans
            ],
        ]

    @classmethod
    def unpacked(cls, packed: Packed) -> Rest:
        """What was :meth:`packed`."""
        path = [Lead.unpacked(lead) for lead in packed[0]]
        plans: list[list[Plan]] = [[] for _ in range(len(path) + 2)]
        for place, leads, then, but in packed[1]:
            steps = [Lead.unpacked(lead) for lead in leads]
            plans[place].append(Plan(steps, then, tuple(but)))
        return cls(path, plans)


WHOLE: Final[Packed] = [[], [[[], [[1, [], -1, []]]]]]  # all of a search

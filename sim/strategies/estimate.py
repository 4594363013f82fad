"""How many executions a depth-first search will have run, from the part of its tree it has seen.

After the recursive estimator of Kilby, Slaney, Thiébaux, Walsh, "Estimating Search Tree Size",
AAAI 2006, which weighs as Knuth does ("Estimating the Efficiency of Backtrack Programs", 1975),
but takes no random samples.  Branches that have not been entered are taken to be as large as the
one finished last beside them, or the one that is being searched if that is smaller.

It is a guess without an interval: the branches that have been finished are no random ones.  It is
too low where races will add branches, and too high where much sleeps in the later ones.  From a
tenth of the search on it was between a fifth and eight times the truth for small programs of
`workloads/benchmarks` (the worst: counter(3, 2) and readers(11)); before that, less sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final


@final
class Tally:
    """Counts the executions behind every place of the current one.

    runs  executions that have ended
    """

    def __init__(self) -> None:
        self.runs = 0
        # By place: executions before the first through it and before the branch that is being
        # searched, and in the one that was finished last.
        self._places: Final[list[list[int]]] = []

    def ended(self, places: int) -> None:
        """An execution through so many places has ended."""
        while len(self._places) < places:
            self._places.append([self.runs, self.runs, 0])
        self.runs += 1

    def back(self, place: int) -> None:
        """The next execution takes another branch at `place`."""
        del self._places[place + 1 :]
        behind = self._places[place]
        behind[2] = self.runs - behind[1]
        behind[1] = self.runs

    def estimate(self, left: Sequence[int]) -> float | None:
        """How many executions there will have been; `left`: branches not entered, by place.

        None before the second execution.
        """
        left = left[: len(self._places)]
        inner = 0.0
        for (start, current, latest), remaining in zip(
            reversed(self._places), reversed(left), strict=True
        ):
            done = current - start
            if not inner:
                inner = max(1.0, latest)
            inner = done + inner + remaining * (min(inner, latest) if latest else inner)
        return inner or None

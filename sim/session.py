"""What ``rcusim explore`` runs: a search in this process or in many, new or resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, final

from sim.campaign import Campaign
from sim.choosing import Strategy
from sim.errors import UsageError
from sim.explore import Explorer, rehearsed
from sim.hosts import direct
from sim.jobs import Jobs
from sim.pools import Pool, cluster, processes
from sim.run import Host
from sim.sizing import Sizing
from sim.strategies.bounded import Bounded
from sim.strategies.dpor import Dpor
from sim.strategies.frontier import Frontier
from sim.strategies.steps import Packed
from sim.totals import COMPLETE, Budget, Found, Result, Totals
from sim.workload import Program


@final
@dataclass(frozen=True)
class Sharing:
    """Where a search is run: in how many processes, or on which Dask cluster."""

    jobs: int | None = None
    cluster: str = ""

    @property
    def wanted(self) -> bool:
        """Whether it is run anywhere but in this process."""
        return bool(self.cluster) or (self.jobs or 1) > 1

    def pool(self) -> Pool:
        """The workers."""
        if self.cluster:
            return cluster(self.cluster, self.jobs)
        return processes(self.jobs or 1)


class Search(Protocol):
    """A search that can be run once."""

    def explore(self, progress: Callable[[Result], None] | None = None) -> Result:
        """Run until a finding, the end of the search or the budget."""
        ...

    def interrupted(self) -> Result:
        """The result so far, of an exploration that Ctrl-C has stopped."""
        ...


@final
class Over:
    """A campaign that is over, resumed: there is only its result to tell."""

    def __init__(self, totals: Totals) -> None:
        self._totals: Final = totals

    def explore(self, progress: Callable[[Result], None] | None = None) -> Result:
        """The result."""
        del progress
        return self._totals.result

    def interrupted(self) -> Result:
        """The result."""
        return self._totals.result


@contextmanager
def searching(
    program: Program,
    strategy: Strategy,
    budget: Budget,
    out: Path,
    *,
    host: Host = direct.run,
    keep_going: bool = False,
    on_found: Callable[[Found], str] | None = None,
    resume: bool = False,
    sharing: Sharing = Sharing(),
    live: bool = False,
) -> Iterator[Search]:
    """The search that is asked for; UsageError if it is not to be had.

    out   the directory of the campaign
    live  whether to estimate how large a complete search is not only at its end
    """
    if not isinstance(strategy, Dpor):
        _refuse(strategy, resume=resume, shared=sharing.wanted)
        yield Explorer(
            program, strategy, budget, host=host, keep_going=keep_going, on_found=on_found
        )
        return
    if sharing.wanted and host is not direct.run:
        raise UsageError("--jobs and --cluster: workers know one host only: --host direct")
    totals = Totals(budget, optimal=True, keep_going=keep_going, on_found=on_found)
    sizing = Sizing(program, budget, live=live)
    options = {"strategy": "dpor", "max-steps": budget.steps, "keep-going": keep_going}
    with ExitStack() as stack:
        campaign = (Campaign.resume if resume else Campaign.new)(program, options, out)
        stack.callback(campaign.close)
        left = _left(campaign, totals) if resume else rehearsed(program, budget)
        if left is None:
            yield Over(totals)
        elif sharing.wanted:
            pool = sharing.pool()
            stack.callback(pool.close)
            frontier = Frontier(left)
            yield Jobs(
                program,
                frontier,
                budget,
                totals,
                pool,
                keep_going=keep_going,
                keep=campaign,
                sizing=sizing,
            )
        else:
            yield Explorer(
                program,
                Dpor(left),
                budget,
                host=host,
                totals=totals,
                keep=campaign,
                sizing=sizing,
            )


def _refuse(strategy: Strategy, *, resume: bool, shared: bool) -> None:
    """Raise UsageError for what other strategies cannot do."""
    bounded = isinstance(strategy, Bounded)
    wanted = "leave out --preemptions" if bounded else "--strategy dpor"
    for given, option in ((resume, "--resume"), (shared, "--jobs and --cluster")):
        if given:
            searches = "complete searches that can be cut into parts"
            raise UsageError(f"{option}: for {searches}: {wanted}")


def _left(campaign: Campaign, totals: Totals) -> Packed | None:
    """What is left of a campaign, None: nothing; `totals` goes on from where it was."""
    totals.restore(campaign.totals)
    if campaign.left is None:
        return None
    totals.result.stopped = ""
    if not campaign.left[1]:
        totals.result.complete = True
        totals.result.stopped = COMPLETE
        totals.finish()
        campaign.keep(None, totals)
        return None
    return campaign.left

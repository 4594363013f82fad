"""Shared among workers, a search comes to the same verdict and the same totals."""

import os
import signal
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sim.errors import MisuseError, UsageError
from sim.explore import Budget, Explorer, Found, Result
from sim.jobs import Jobs
from sim.pools import Pool, processes
from sim.session import Sharing, searching
from sim.slices import Limits, run_slice
from sim.strategies.dpor import Dpor
from sim.strategies.frontier import Frontier
from sim.strategies.random_walk import RandomWalk
from sim.totals import Totals
from sim.workload import Program, find

NO_BUDGET = Budget(seconds=600)
PROGRAMS = {
    "counter": find("counter").prepare({"n": 2, "k": 3}),
    "lastzero": find("lastzero").prepare({"n": 8}),
    "philosophers": find("philosophers").prepare({}),
    "inner_map_replace": find("inner_map_replace").prepare({}, version="6.8"),
}


class Inline(Executor):
    """Runs a slice when it is handed in, cut to a random length; some die instead."""

    def __init__(self, seed: int, *, deaths: float = 0.0) -> None:
        self.random = Random(seed)
        self.deaths = deaths

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        spec, packed, limits = args
        cut = Limits(
            min(limits.executions, self.random.choice((1, 2, 7, 50))),
            60.0,
            limits.steps,
            limits.keep_going,
            limits.before,
        )
        if self.random.random() < self.deaths:
            future.set_exception(BrokenProcessPool("killed"))
        else:
            try:
                future.set_result(fn(spec, packed, cut, **kwargs))
            except Exception as error:
                future.set_exception(error)
        return future


def share(
    program: Program, pool: Pool, budget: Budget = NO_BUDGET, *, keep_going: bool = True
) -> Result:
    totals = Totals(budget, keep_going=keep_going, on_found=lambda found: f"{found.number}")
    return Jobs(program, Frontier(), budget, totals, pool, keep_going=keep_going).explore()


def totals_of(result: Result) -> Any:
    return (
        result.verdict,
        result.executions,
        result.steps,
        result.blocked,
        result.cut,
        result.outcomes,
        sorted(found.finding.key for found in result.findings),
        sorted(found.finding.key for found in result.races),
    )


def alone(program: Program) -> Result:
    return Explorer(program, Dpor(), NO_BUDGET, keep_going=True).explore()


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("deaths", [0.0, 0.2])
def test_totals_are_those_of_one_process(name: str, deaths: float) -> None:
    executor = Inline(1, deaths=deaths)
    result = share(PROGRAMS[name], Pool(lambda: executor, 3))

    assert totals_of(result) == totals_of(alone(PROGRAMS[name]))
    assert result.complete


@pytest.mark.parametrize("jobs", [2, 3])
def test_totals_of_real_processes_are_those_of_one(jobs: int) -> None:
    for program in PROGRAMS.values():
        assert totals_of(share(program, processes(jobs))) == totals_of(alone(program))


def test_a_worker_that_is_killed_loses_nothing() -> None:
    program = find("counter").prepare({"n": 2, "k": 4})
    pools: list[ProcessPoolExecutor] = []

    def new() -> Executor:
        pool = processes(2).executor()
        assert isinstance(pool, ProcessPoolExecutor)
        pools.append(pool)
        return pool

    def kill() -> None:
        for _ in range(3):  # before the search can be over: a worker needs some time to start
            time.sleep(0.1)
            for process in list((pools[-1]._processes or {}).values() if pools else ())[:1]:
                with suppress(ProcessLookupError):
                    os.kill(process.pid or 0, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = share(program, Pool(new, 2))
    killer.join()

    assert len(pools) > 1
    assert (result.verdict, result.executions) == ("proved", 3334)


def test_workers_that_always_die_are_given_up() -> None:
    executor = Inline(0, deaths=1.1)

    with pytest.raises(UsageError, match="--jobs 1 does without them"):
        share(PROGRAMS["counter"], Pool(lambda: executor, 2))


def test_a_budget_of_executions_is_that_of_all() -> None:
    executor = Inline(0)
    result = share(PROGRAMS["counter"], Pool(lambda: executor, 2), Budget(executions=100))

    assert (result.executions, result.verdict) == (100, "inconclusive")
    assert "budget of 100 executions" in result.stopped


def test_a_budget_of_seconds_is_that_of_all() -> None:
    executor = Inline(0)
    result = share(PROGRAMS["counter"], Pool(lambda: executor, 2), Budget(seconds=0.0))

    assert result.verdict == "inconclusive"
    assert "budget of 0 s" in result.stopped


def test_the_first_finding_ends_it_and_its_trace_is_written_here() -> None:
    executor = Inline(0)
    result = share(PROGRAMS["philosophers"], Pool(lambda: executor, 2), keep_going=False)

    assert result.verdict == "finding"
    assert [bool(found.trace) for found in result.findings] == [True]


def test_what_findings_end_is_counted_apart() -> None:
    """How often a way to one is run depends on the workers, and nothing else does."""
    program = find("tailcall_load_window").prepare({}, version="5.10")
    executor = Inline(1)
    result, one = share(program, Pool(lambda: executor, 3)), alone(program)

    assert one.classes == one.distinct == result.distinct
    assert result.outcomes == one.outcomes
    assert min(result.fatal, one.fatal) >= len(one.findings) > 1
    assert {found.finding.key for found in result.findings} == {
        found.finding.key for found in one.findings
    }
    assert len({found.number for found in result.findings}) == len(result.findings)


def test_what_a_worker_raises_is_raised() -> None:
    class Raising(Inline):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(MisuseError("write `await`"))
            return future

    with pytest.raises(MisuseError, match="write `await`"):
        share(PROGRAMS["counter"], Pool(lambda: Raising(0), 2))


def test_a_predicted_use_after_free_is_searched_for() -> None:
    program = find("inner_map_replace").prepare({}, version="5.10")
    executor = Inline(0)
    found: list[Found] = []

    def on_found(one: Found) -> str:
        found.append(one)
        return ""

    totals = Totals(NO_BUDGET, on_found=on_found)
    Jobs(program, Frontier(), NO_BUDGET, totals, Pool(lambda: executor, 2)).explore()

    assert [one.finding.kind for one in found] == ["use-after-free"]


def test_other_strategies_cannot_be_shared(tmp_path: Path) -> None:
    program = PROGRAMS["counter"]
    search = searching(program, RandomWalk(0), Budget(), tmp_path, sharing=Sharing(jobs=2))

    with pytest.raises(UsageError, match="--strategy dpor"), search:
        pass


def test_a_slice_is_of_the_program_that_was_meant() -> None:
    spec = '["counter", {"n": 2, "k": 3}, {}, "another digest"]'

    with pytest.raises(RuntimeError, match="another counter"):
        run_slice(spec, [], Limits(1, 1.0, 100, keep_going=False, before=0))

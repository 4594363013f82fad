"""The trio host: every modelled thread lives in a trio task of its own.

The task drives the thread's coroutine with ``send()`` (in `Execution.resume`) and parks between
steps; no operation ever reaches trio's runner.  A workload can so live inside a pytest-trio
test or beside real async code, under trio's cancellation.  Between steps the host yields to
trio, so other tasks of the program make progress and cancelling is prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Final, final

import trio

from sim.errors import MisuseError, RcusimError
from sim.execution import Execution
from sim.threads import Thread


@final
class _Baton:
    """Hands the right to run to one thread's task and back.

    invariant: of the conductor and the threads' tasks exactly one is not parked.
    """

    def __init__(self) -> None:
        self.parked: Final[dict[Thread, trio.lowlevel.Task]] = {}
        self.conductor: trio.lowlevel.Task | None = None
        self.error: BaseException | None = None

    async def give(self, task: trio.lowlevel.Task) -> None:
        """Conductor: wake `task` and wait until it has parked again or ended."""
        self.conductor = trio.lowlevel.current_task()
        trio.lowlevel.reschedule(task)
        await trio.lowlevel.wait_task_rescheduled(self._abort_conductor)
        if self.error is not None:
            raise self.error

    def give_back(self) -> None:
        """Thread's task: let the conductor go on."""
        if self.conductor is not None:
            conductor, self.conductor = self.conductor, None
            trio.lowlevel.reschedule(conductor)

    def _abort_conductor(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self.conductor = None
        return trio.lowlevel.Abort.SUCCEEDED


async def _drive(execution: Execution, thread: Thread, baton: _Baton) -> None:
    """The task of one modelled thread: park, take a step, hand back, until it has ended."""

    def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
        baton.parked.pop(thread, None)
        return trio.lowlevel.Abort.SUCCEEDED

    try:
        while thread.coroutine is not None:
            baton.parked[thread] = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)
            try:
                execution.resume(thread)
            except RcusimError as error:
                baton.error = error
                return
            baton.give_back()
    finally:
        if baton.error is not None:
            baton.give_back()


async def run(execution: Execution) -> None:
    """Run `execution` to its end, inside trio.  Raises what `Execution.resume` raises.

    Cancelled mid-run, it leaves no running thread; what has been recorded stays recorded.
    """
    baton = _Baton()
    try:
        async with trio.open_nursery() as nursery:

            async def resume(thread: Thread) -> None:
                if thread not in baton.parked:
                    nursery.start_soon(_drive, execution, thread, baton, name=thread.name)
                    while thread not in baton.parked:
                        await trio.lowlevel.checkpoint()
                await baton.give(baton.parked.pop(thread))

            # Not raised through the nursery, which would wrap it into an exception group.
            try:
                await _conduct(execution, resume)
            except (Exception, KeyboardInterrupt) as error:
                baton.error = error
            nursery.cancel_scope.cancel()
    finally:
        execution.close()
    if baton.error is not None:
        raise baton.error


async def _conduct(
    execution: Execution, resume: Callable[[Thread], Coroutine[object, object, None]]
) -> None:
    await resume(execution.boot())
    execution.start()
    while (step := execution.advance()) is not None:
        thread, forked = step
        if forked is not None:
            await resume(forked)
        await resume(thread)


def run_blocking(execution: Execution) -> None:
    """Run `execution` to its end under a trio loop of its own.

    Raises MisuseError inside a running trio loop: there, ``await run(...)``.
    """
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        trio.run(run, execution)
        return
    raise MisuseError("a trio loop is running: write `await sim.hosts.trio_host.run(execution)`")

"""Which steps of an execution race, and what happens before what in it.

Happens-before is the order of dependent steps (`ops.dependent`) and of the steps of one thread;
that is the order of Mazurkiewicz's traces, not that of `sim.detectors.happens_before`, which asks
what the kernel's own synchronisation orders.  Clocks as there: of every thread, how many of its
steps come before.  Two dependent steps race if nothing else orders them and the second could
have come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, final

from sim import ops
from sim.ops import Op
from sim.strategies.history import TIME, History, cpu_of
from sim.strategies.joint import Joint
from sim.strategies.steps import Clock, Spot, Step, join
from sim.threads import Thread

if TYPE_CHECKING:
    from sim.events import Event

_TIME: Final = frozenset({ops.CLOCK, ops.ARM, ops.SLEEP})
_NONE: Final[dict[int, int]] = {}


@final
class Races:
    """Finds the races of a history as it grows.

    joint  whether a thread has waited for several things, as in `joint.py`
    """

    def __init__(self, history: History) -> None:
        self.joint = False
        self._history: Final = history
        self._steps: Final = history.steps
        self.pending: list[Step] = []  # that threads stand before at the end

    def push(self, event: Event) -> Step:
        """A step has been taken: put it into the history, with its clock and its races."""
        step = self._history.open(event)
        clock = step.clock
        racing: list[int] = []
        ordered: list[int] = []
        self._look(step, clock, racing, ordered, event.result)
        if racing:
            step.base = clock[:]
            step.needs = [*racing, *ordered] if ordered else racing
            step.races = self._direct(racing)
            for other in racing:
                join(clock, self._steps[other].clock)
        for other in ordered:
            join(clock, self._steps[other].clock)
        clock[step.number] = step.time
        self._history.note(step, event)
        return step

    def past(self, first: int, second: Step) -> Clock:
        """What happens before `second` if step `first` does not."""
        clock = second.base[:]
        clock += [0] * (len(self._history.of) - len(clock))
        for at in second.needs:
            if at > first and not self._history.is_after(first, at):
                join(clock, self._steps[at].clock)
        return clock

    # -- what a step depends on --------------------------------------------------------------------

    def _look(
        self, step: Step, clock: Clock, racing: list[int], ordered: list[int], result: Any
    ) -> None:
        """Find the steps on which `step` depends: those that race with it, and the others.

        clock   what is ordered before it by its thread alone
        result  of the step; None: it has not been taken
        """
        op, kind = step.op, step.op.kind
        if step.on_cpu:
            spot = self._history.spot(step.on_cpu, 1)
            if spot.writes and self._is_new(step, clock, spot.writes[-1]):
                self._jointly(step, clock, ordered, spot, result)
                return
        if step.memory:
            spot = self._history.spot(op.addr, op.size)
            if kind == ops.LOCK and self._is_odd(spot):
                self._jointly(step, clock, ordered, None, result)
                return
            self._meet(spot, step, clock, racing, write=step.writes)
            for near in spot.overlaps:
                self._meet(near, step, clock, racing, write=step.writes)
            if kind == ops.LOCK:
                self._possible(step, clock, racing, ordered, spot)
        elif kind == ops.WAIT:
            self._wait(step, clock, racing, ordered, result)
        elif kind == ops.SECTION_BEGIN:
            self._new(step, clock, racing, self._history.starts.get(op.addr, _NONE).values())
        elif kind == ops.GP_START:
            self._new(step, clock, racing, self._history.begins.get(op.addr, _NONE).values())
        elif kind == ops.GP_END:
            ordered += self._ended(op)
        elif kind == ops.JOIN:
            if op.addr in self._history.exits:
                ordered.append(self._history.exits[op.addr])
        elif kind in _TIME:
            spot = self._history.spot(TIME, 1)
            self._meet(spot, step, clock, racing, write=kind != ops.CLOCK)
            if kind == ops.SLEEP:
                self._possible(step, clock, racing, ordered, spot)
        if step.on_cpu:
            spot = self._history.spot(step.on_cpu, 1)
            self._meet(spot, step, clock, racing, write=kind == ops.CPU_HOLD)

    def _jointly(
        self,
        step: Step,
        clock: Clock,
        ordered: list[int],
        cpu: Spot | None,
        result: Any,
    ) -> None:
        """`step` waits for several things, its CPU perhaps: all must be there when it comes."""
        self.joint = True
        op, kind = step.op, step.op.kind
        predicate: Callable[..., bool] = _always
        spots: list[Spot] = []
        values: list[Any] = []
        ends: list[int] = []
        if kind == ops.WAIT:
            predicate, cells = op.operand
            spots = [self._history.spot(cell.addr, cell.size) for cell in cells]
            values = list(result) if step.time else [cell.value for cell in cells]
        elif kind == ops.LOCK:
            predicate = _is_none
            spots = [self._history.spot(op.addr, op.size)]
            values = [None if step.time else op.target.value]
        elif kind in (ops.GP_END, ops.JOIN):
            if not step.time and not self._is_over(op):
                return
            ends = [self._history.exits[op.addr]] if kind == ops.JOIN else list(self._ended(op))
        joint = Joint(self._history, predicate, spots, values, cpu, ends)
        met = joint.met(step, clock)
        ordered += [*met, *ends]
        step.cuts = joint.cuts(step, clock, met)

    def _is_odd(self, spot: Spot) -> bool:
        """Whether a lock has been freed, or written in part."""
        freed = bool(spot.writes) and self._steps[spot.writes[-1]].op.kind == ops.FREE
        return freed or any(near.writes for near in spot.overlaps)

    def _is_over(self, op: Op[Any]) -> bool:
        """Whether what a JOIN or GP_END waits for has ended."""
        if op.kind == ops.JOIN:
            return op.addr in self._history.exits
        return all((op.addr, one) in self._history.ends for one in op.operand.waits_for)

    def _is_new(self, step: Step, clock: Clock, at: int) -> bool:
        """Whether step `at` is another thread's, and not ordered before by `clock`."""
        other = self._steps[at]
        return other.number != step.number and other.time > clock[other.number]

    def _ended(self, op: Op[Any]) -> Iterator[int]:
        """Where the sections ended that a grace period waits for, or that it found ended.

        Had it started earlier, it would have had to wait for those, too; and that is the same
        class of executions, for the end of a section and the start of a grace period commute.
        """
        ends = self._history.ends
        yield from (ends[op.addr, one] for one in op.operand.waits_for if (op.addr, one) in ends)
        yield from self._history.started.get(op.operand, ())

    def _new(self, step: Step, clock: Clock, found: list[int], others: Iterable[int]) -> None:
        """Those of `others` that are of other threads and not ordered before by them."""
        for index in others:
            other = self._steps[index]
            if other.number != step.number and other.time > clock[other.number]:
                found.append(index)

    def _meet(self, spot: Spot, step: Step, clock: Clock, found: list[int], *, write: bool) -> None:
        """The last steps at `spot` on which a read or a write there depends."""
        steps, number = self._steps, step.number
        if spot.writes:
            at = spot.writes[-1]
            last = steps[at]
            if last.number != number and last.time > clock[last.number]:
                found.append(at)
        if write and spot.readers:
            self._new(step, clock, found, spot.readers.values())

    def _possible(
        self, step: Step, clock: Clock, racing: list[int], ordered: list[int], spot: Spot
    ) -> None:
        """`step` has to wait for what was written to `spot`: leave what it could come before."""
        if not spot.writes:
            return
        last = spot.writes[-1]
        if last in racing and not self._could_come(step, last, spot):
            ordered += [at for at in racing if self._history.is_after(at, last)]
            racing[:] = [at for at in racing if not self._history.is_after(at, last)]
            for at in reversed(spot.writes):
                if self._could_come(step, at, spot):
                    self._new(step, clock, racing, (at,))
                    break

    def _could_come(self, step: Step, index: int, spot: Spot) -> bool:
        """Whether the lock was free before step `index` wrote it, or `step` could wake."""
        if spot.addr == TIME:
            return self._earliest(step, index)
        return self._steps[index].before is None

    def _wait(
        self, step: Step, clock: Clock, racing: list[int], ordered: list[int], result: Any
    ) -> None:
        """`step` waits for a predicate: find the last steps before which it held."""
        predicate, cells = step.op.operand
        values = list(result) if result is not None else [cell.value for cell in cells]
        spots = [self._history.spot(cell.addr, cell.size) for cell in cells]
        for spot in spots:
            for near in (spot, *spot.overlaps):
                self._meet(near, step, clock, ordered, write=False)
        joint = Joint(self._history, predicate, spots, values)
        writes = joint.writes(step, clock)
        if sum(1 for spot in spots if spot.writes) > 1 or not joint.is_plain(writes):
            self.joint = True
            step.cuts = joint.cuts(step, clock, writes)
            return
        for at in writes:
            if predicate(
                *(
                    self._steps[at].before if spot.writes else value
                    for spot, value in zip(spots, values, strict=True)
                )
            ):
                racing.append(at)
                break

    def _earliest(self, step: Step, without: int) -> bool:
        """Whether `step` would be the next to wake, were it not for step `without`."""
        for number, own in enumerate(self._history.of):
            if number == step.number:
                continue
            left = [at for at in own if not self._history.is_after(without, at)]
            op = (
                self._steps[own[len(left)]].op
                if len(left) < len(own)
                else self._history.next_of(number)
            )
            if op is not None and op.kind == ops.SLEEP and op.operand < step.op.operand and left:
                return False
        return True

    def _direct(self, racing: list[int]) -> list[int]:
        """Those of `racing` that do not happen before another one."""
        if len(racing) <= 1:
            return racing
        return [
            at
            for at in dict.fromkeys(racing)
            if not any(other != at and self._history.is_after(at, other) for other in racing)
        ]

    # -- the end of an execution -------------------------------------------------------------------

    def ended(self, threads: Sequence[Thread], *, fatal: bool, stuck: bool) -> None:
        """The execution is over; `fatal`: at its last step, `stuck`: for nobody can go on."""
        self.pending = []
        if fatal and self._steps:
            self._steps[-1].fatal = True
        if fatal or stuck:
            for thread in threads:
                if thread.pending is not None and not thread.ended:
                    number = self._history.number_of(thread.key)
                    self.pending.append(Step(thread.key, cpu_of(thread), thread.pending, number))

    def pending_races(self) -> Iterator[tuple[int, Step]]:
        """Races with the steps that threads stand before at the end; all race with a fatal one."""
        last = len(self._steps) - 1
        end = self._steps[last]
        if end.fatal:
            yield from ((first, end) for first in self._unordered(end))
        for step in self.pending:
            waits = step.op.kind in (ops.GP_END, ops.JOIN)
            if end.fatal and not waits and self._was_able(step):
                yield last, step
            else:
                yield from self._stuck(step)

    def stuck_races(self) -> Iterator[tuple[int, Step]]:
        """Races with the steps that threads stand before at the end, and cannot take."""
        for step in self.pending:
            yield from self._stuck(step)

    def _stuck(self, step: Step) -> Iterator[tuple[int, Step]]:
        if step.op.kind in (ops.GP_END, ops.JOIN) and not step.on_cpu:
            return  # what they wait for is a matter of other races
        if self._steps[-1].fatal and self._before(step) == len(self._steps) - 1:
            return
        step.base = self._history.clock_of(step.number)
        if step.on_cpu:
            on_cpu = self._history.spot(step.on_cpu, 1).writes
            others = self._history.holder(on_cpu, len(on_cpu)) not in (-1, step.number)
            if others and not self._is_new(step, step.base, on_cpu[-1]):
                return  # whoever keeps it off its CPU has done so since before it was there
        racing: list[int] = []
        ordered: list[int] = []
        self._look(step, step.base, racing, ordered, None)
        step.needs = [*racing, *ordered]
        if step.op.kind == ops.LOCK:
            racing = [at for at in racing if self._steps[at].op.kind in ops.WRITING]
        for first in self._direct(racing):
            yield first, step

    def _before(self, step: Step) -> int:
        """What the thread of a pending step did last, or what forked it."""
        own = self._history.of[step.number]
        return own[-1] if own else self._history.born.get(step.number, 0)

    def others_able(self, but: Sequence[int]) -> bool:
        """Whether threads other than those with these keys could have taken the last step."""
        return any(step.key not in but and self._was_able(step) for step in self.pending)

    def _unordered(self, end: Step) -> list[int]:
        """The last steps of other threads that do not happen before `end`, which is fatal."""
        clock = end.clock + [0] * (len(self._history.of) - len(end.clock))
        found: list[int] = []
        for own in self._history.of:
            self._new(end, clock, found, own[-1:])
        return self._direct(found)

    def _was_able(self, step: Step) -> bool:
        """Whether a pending step could have been taken before the last step."""
        op, kind = step.op, step.op.kind
        last = len(self._steps) - 1
        if self._before(step) == last:
            return False
        if step.on_cpu:
            writes = self._history.spot(step.on_cpu, 1).writes
            before = sum(1 for at in writes if at < last)
            if self._history.holder(writes, before) not in (-1, step.number):
                return False
        if kind == ops.JOIN:
            return self._history.exits.get(op.addr, last) < last
        if kind == ops.GP_END:
            ends = self._history.ends
            return all(ends.get((op.addr, one), last) < last for one in op.operand.waits_for)
        if kind == ops.LOCK:
            return self._value(op.target, last) is None
        if kind == ops.WAIT:
            predicate, cells = op.operand
            return bool(predicate(*(self._value(cell, last) for cell in cells)))
        return kind != ops.SLEEP or self._earliest(step, last)

    def _value(self, place: Any, last: int) -> Any:
        """What a cell held before step `last`."""
        writes = self._history.spot(place.addr, place.size).writes
        return self._steps[last].before if writes and writes[-1] == last else place.value


def _always() -> bool:
    return True


def _is_none(value: Any) -> bool:
    return value is None

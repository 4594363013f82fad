"""Registers and stack: calls, jumps and returns, and what is said when a return goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kernel_model.kernel import Kernel
from kernel_model.linux.task import syscall
from kernel_model.x86.cpu import CALLEE_SAVED, THREAD_SIZE, Jump, Machine, machine
from kernel_model.x86.text import Entry, Image
from sim.errors import MisuseError
from sim.threads import Body, current
from tests.kernel_model.bpf.maps import Explored, explore, run, together

FRAME = "corrupted-frame"


def image_of(kernel: Kernel, *entries: Entry) -> Image:
    """An image whose functions are at 0, 16, 32..."""
    made = kernel.memory.static(Image, kernel, "text", 64, {})
    made.entries.update({16 * i: entry for i, entry in enumerate(entries)})
    return made


def back(m: Machine) -> None:
    """The instruction `ret`."""
    m.pc = m.pop()


def called(change: Callable[[Machine], Any]) -> Explored:
    """What comes of a call of a function that does something and returns."""

    async def function(m: Machine) -> None:
        change(m)
        back(m)

    async def main(kernel: Kernel) -> None:
        image = image_of(kernel, function)
        async with syscall(kernel):
            await machine(kernel)._call_c(image.addr, "here")

    return explore(main, runs=1)


def titles(found: Explored) -> str:
    return "; ".join(title for _, title in sorted(found.wrong))


def run_task(main: Callable[[Kernel], Body]) -> None:
    """Run a task, in which nothing may go wrong."""

    async def start(kernel: Kernel) -> None:
        await together(kernel, lambda: main(kernel))

    run(start)


# -- the stack -----------------------------------------------------------------------------------


def test_the_stack_grows_down_in_quads() -> None:
    async def main(kernel: Kernel) -> None:
        m = machine(kernel)
        assert m.high - m.low == THREAD_SIZE
        assert m.rsp == m.rbp == m.high
        m.push(0x1122_3344_5566_7788)
        m.push(-1)
        assert m.rsp == m.high - 16
        assert m.stack[-8:] == bytes.fromhex("8877665544332211")
        assert m.read(m.rsp) == (1 << 64) - 1
        assert m.pop() == (1 << 64) - 1
        assert m.pop() == 0x1122_3344_5566_7788
        assert m.rsp == m.high

    run_task(main)


def test_beyond_the_stack_there_are_zeros_and_writes_go_nowhere() -> None:
    async def main(kernel: Kernel) -> None:
        m = machine(kernel)
        before = bytes(m.stack)
        for addr in (m.low - 8, m.high, m.high - 4):
            m.write(addr, 7)
            assert m.read(addr) == 0
        assert m.stack == before

    run_task(main)


def test_every_thread_has_a_machine_and_a_stack_of_its_own() -> None:
    async def main(kernel: Kernel) -> None:
        made: list[Machine] = []

        async def one() -> None:
            made.append(machine(kernel))
            assert machine(kernel) is made[-1]

        await together(kernel, one, one)
        assert made[0] is not made[1]
        assert made[0].high <= made[1].low or made[1].high <= made[0].low

    run(main)


# -- calls ---------------------------------------------------------------------------------------


def test_a_call_returns_what_is_in_rax_and_leaves_everything_else() -> None:
    async def inner(m: Machine) -> None:
        m.push(m.rbx)
        m.rbx = 5
        m.rax = m.rbx + 1
        m.rbx = m.pop()
        back(m)

    async def main(kernel: Kernel) -> None:
        async def outer(m: Machine) -> None:
            m.rax = await m._call(image.addr + 16, image.addr + 8) + 1
            back(m)

        image = image_of(kernel, outer, inner)
        m = machine(kernel)
        saved = m.saved()
        async with syscall(kernel):
            assert await m._call_c(image.addr, "here") == 7
        assert m.saved() == saved

    run_task(main)


def test_a_jump_goes_on_in_the_frame_of_who_jumps() -> None:
    pushed = []

    async def second(m: Machine) -> None:
        pushed.append(m.rsp)
        m.rax = m.args[0]
        back(m)

    async def main(kernel: Kernel) -> None:
        async def first(m: Machine) -> Jump:
            pushed.append(m.rsp)
            return Jump(image.addr + 16)

        image = image_of(kernel, first, second)
        m = machine(kernel)
        m.args = (42,)
        async with syscall(kernel):
            assert await m._call_c(image.addr, "here") == 42

    run_task(main)
    assert pushed[0] == pushed[1]


@pytest.mark.parametrize("register", [*CALLEE_SAVED, "rbp"])
def test_a_function_that_loses_a_register_is_found(register: str) -> None:
    found = called(lambda m: setattr(m, register, 1))

    assert FRAME in found.kinds
    assert "wrong registers" in titles(found)


@pytest.mark.parametrize("register", ["rax"])
def test_a_function_may_change_the_other_registers(register: str) -> None:
    assert not called(lambda m: setattr(m, register, 1)).wrong


def test_a_stack_that_is_not_popped_is_found() -> None:
    found = called(lambda m: m.push(m.read(m.rsp)))  # returns right, but one quad too low

    assert "wrong registers" in titles(found)


@pytest.mark.parametrize("change", [Machine.pop, lambda m: m.push(1)])
def test_a_return_to_nowhere_is_found(change: Callable[[Machine], Any]) -> None:
    found = called(change)

    assert FRAME in found.kinds
    assert "return to" in titles(found)


def test_execution_where_no_function_begins_is_found() -> None:
    async def main(kernel: Kernel) -> None:
        image = image_of(kernel)
        async with syscall(kernel):
            await machine(kernel)._call_c(image.addr + 3, "here")

    found = explore(main, runs=1)

    assert FRAME in found.kinds
    assert "in no function" in titles(found)


def test_execution_where_there_is_no_text_is_found() -> None:
    async def main(kernel: Kernel) -> None:
        async with syscall(kernel):
            await machine(kernel)._call_c(0x1234, "here")

    assert explore(main, runs=1).wrong


# -- counting tail calls -------------------------------------------------------------------------


@pytest.mark.parametrize(("calls", "found"), [(33, False), (34, True)])
def test_33_tail_calls_may_succeed(calls: int, found: bool) -> None:
    async def function(m: Machine) -> None:
        for _ in range(calls):
            await m._count_tail_call("again")
        back(m)

    async def main(kernel: Kernel) -> None:
        image = image_of(kernel, function)
        async with syscall(kernel):
            await machine(kernel)._call_c(image.addr, "here")

    assert ("unbounded-loop" in explore(main, runs=1).kinds) == found


def test_every_call_from_c_counts_anew() -> None:
    async def function(m: Machine) -> None:
        for _ in range(20):
            await m._count_tail_call("again")
        back(m)

    async def main(kernel: Kernel) -> None:
        image = image_of(kernel, function)
        async with syscall(kernel):
            for _ in range(2):
                await machine(kernel)._call_c(image.addr, "here")

    run(main)


def test_a_thread_that_is_no_task_executes_no_text() -> None:
    async def main(kernel: Kernel) -> None:
        current().context = None
        with pytest.raises(MisuseError, match="executes text"):
            machine(kernel)

    explore(main, runs=1)


def test_calls_without_end_hit_the_guard_page_of_the_stack() -> None:
    async def main(kernel: Kernel) -> None:
        async def function(m: Machine) -> None:
            m.rsp -= 512
            await m._call(image.addr, image.addr + 1)

        image = image_of(kernel, function)
        async with syscall(kernel):
            await machine(kernel)._call_c(image.addr, "here")

    found = explore(main, runs=1)

    assert [kind for kind, _ in found.wrong] == ["kernel-bug"]

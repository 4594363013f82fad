"""kernel/trace/ftrace.c (v5.10): functions of the kernel that can be traced, and direct calls

A traced function begins with a site that is a nop, or calls the trampoline that is registered.

Not modelled: other users of ftrace, its records and their hash; `direct_mutex` and `ftrace_lock`
are one lock here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

from kernel_model.fixes import Fix
from kernel_model.linux.errno import EBUSY, EINVAL, ENODEV
from kernel_model.linux.mutex import mutex
from kernel_model.rcu.tasks import synchronize_rcu_tasks
from kernel_model.x86.alternative import TextPatching, _fetch_site, text_poke_bp
from kernel_model.x86.cpu import Jump, machine
from kernel_model.x86.text import NOP5, POKE_SIZE, Image, Text
from sim.cells import Cell, Struct, cell
from sim.macros import load, note, store
from sim.ops import Op
from sim.threads import Thread

if TYPE_CHECKING:
    from kernel_model.kernel import Kernel
    from kernel_model.x86.cpu import Machine

Body = Callable[..., Coroutine[Op[Any], Any, int]]


@final
class TracedFunction(Image):
    """A function of the kernel: its entry site, and behind it what C was compiled to.

    body     the function, of the kernel and the arguments
    nr_args  how many arguments there are
    """

    KIND = "kernel_text"
    TEXT = False

    def __init__(self, kernel: Kernel, name: str, body: Body) -> None:
        super().__init__(kernel, name, 64, {0: ("fentry", NOP5)})
        self.body: Final = body
        self.nr_args: Final = len(inspect.signature(body).parameters) - 1
        self.entries[0] = partial(_enter, self)
        self.entries[POKE_SIZE] = partial(_run_body, self)


@final
class Ftrace(Struct):
    """All traced functions by name, and what is registered.

    direct_functions  the trampoline's address of each function that has one
    direct_funcs      the addresses that registering has recorded
    """

    KIND = "ftrace"

    direct_mutex: Cell[Thread | None] = cell(None)
    direct_functions: Cell[tuple[tuple[str, int], ...]] = cell(())
    direct_funcs: Cell[tuple[int, ...]] = cell(())

    def __init__(self) -> None:
        self.by_name: Final[dict[str, TracedFunction]] = {}


async def _enter(function: TracedFunction, m: Machine) -> Jump | None:
    seen = await _fetch_site(m.kernel, function.sites[0])
    if seen.op == "call":
        m.push(function.addr + POKE_SIZE)
        return Jump(seen.target)
    return await _run_body(function, m)


async def _run_body(function: TracedFunction, m: Machine) -> Jump | None:
    m.rax = await function.body(m.kernel, *m.args)
    m.pc = m.pop()
    return None


def traced_function(kernel: Kernel, name: str, body: Body) -> TracedFunction:
    """Add a function to the kernel: ``async def body(kernel, *args)``."""
    made = kernel.memory.static(TracedFunction, kernel, name, body)
    kernel.subsystem(Ftrace).by_name[name] = made
    return made


async def call_function(kernel: Kernel, function: TracedFunction, *args: int) -> int:
    """The running task calls the function."""
    m = machine(kernel)
    outer, m.args = m.args, args
    result = await m._call_c(function.addr, function.name)
    m.args = outer
    return result


# -- direct calls --------------------------------------------------------------------------------


def _call_to(addr: int) -> Text:
    return Text("call", addr)


async def _poke(kernel: Kernel, function: TracedFunction, new: Text) -> None:
    async with mutex(kernel.subsystem(TextPatching).text_mutex):
        await text_poke_bp(kernel, function.sites[0], new)


def _without(table: tuple[tuple[str, int], ...], name: str) -> tuple[tuple[str, int], ...]:
    return tuple(entry for entry in table if entry[0] != name)


async def register_ftrace_direct(kernel: Kernel, function: TracedFunction, addr: int) -> int:
    ftrace = kernel.subsystem(Ftrace)
    async with mutex(ftrace.direct_mutex):
        table = await load(ftrace.direct_functions)
        if any(name == function.name for name, _ in table):
            return -EBUSY
        await store(ftrace.direct_functions, (*table, (function.name, addr)))
        await store(ftrace.direct_funcs, (*await load(ftrace.direct_funcs), addr))
        await _poke(kernel, function, _call_to(addr))
    return 0


async def modify_ftrace_direct(kernel: Kernel, function: TracedFunction, old: int, new: int) -> int:
    ftrace = kernel.subsystem(Ftrace)
    async with mutex(ftrace.direct_mutex):
        table = await load(ftrace.direct_functions)
        known = dict(table).get(function.name)
        if known is None:
            return -ENODEV
        if known != old:
            return -EINVAL
        if kernel.has(Fix.MODIFY_DIRECT):
            funcs = await load(ftrace.direct_funcs)
            rest = tuple(addr for addr in funcs if addr != old)
            await store(ftrace.direct_funcs, (*rest, new))
        entries = (*_without(table, function.name), (function.name, new))
        await store(ftrace.direct_functions, entries)
        await _poke(kernel, function, _call_to(new))
    return 0


async def unregister_ftrace_direct(kernel: Kernel, function: TracedFunction, addr: int) -> int:
    ftrace = kernel.subsystem(Ftrace)
    async with mutex(ftrace.direct_mutex):
        table = await load(ftrace.direct_functions)
        if dict(table).get(function.name) != addr:
            return -ENODEV
        await _poke(kernel, function, NOP5)
        await store(ftrace.direct_functions, _without(table, function.name))
        funcs = await load(ftrace.direct_funcs)
        if addr not in funcs:
            await note("WARN", "unregister_ftrace_direct: !direct_func")
            return 0
        await store(ftrace.direct_funcs, tuple(other for other in funcs if other != addr))
        await synchronize_rcu_tasks(kernel)
    return 0

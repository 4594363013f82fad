"""From programs as data to coroutines over a fixed set of shared places."""

from collections.abc import Callable
from typing import Any

from sim import ops
from sim.cells import Bytes, Cell, Struct, cell
from sim.clock import now, sleep
from sim.cpu import Cpu
from sim.macros import (
    alloc,
    choose,
    cmpxchg,
    cpu_hold,
    cpu_release,
    free,
    gp_end,
    gp_start,
    join,
    load,
    load_at,
    lock,
    new_section,
    outcome,
    rmw,
    rmw_at,
    section_begin,
    section_end,
    smp_store_release,
    store_at,
    trylock,
    unlock,
    wait_until,
    xchg,
)
from sim.memory import Memory
from sim.ops import Op
from sim.sections import Domain, GracePeriod
from sim.threads import Body, Thread, current, spawn
from tests.programs.code import (
    RELATIONS,
    Await,
    Barrier,
    Call,
    Cas,
    Choose,
    Code,
    Expect,
    Follow,
    Fork,
    Held,
    Instruction,
    Locked,
    Meet,
    Modify,
    Program,
    Publish,
    Read,
    Reader,
    Retire,
    Risk,
    Sleep,
    Swap,
    Synchronize,
    Time,
    Touch,
    When,
    Write,
)


class Node(Struct):
    KIND = "node"
    value: Cell[int] = cell(7)


class Shared(Struct):
    KIND = "shared"
    x: Cell[int] = cell(0)
    y: Cell[int] = cell(0)
    z: Cell[int] = cell(0)
    a: Cell[Thread | None] = cell(None)
    b: Cell[Thread | None] = cell(None)
    p: Cell[Node | None] = cell(None)
    q: Cell[Node | None] = cell(None)
    data: Bytes

    def __init__(self) -> None:
        self.add_bytes("data", 8)


def bug() -> Op[None]:
    """A finding that ends the execution."""
    return Op(ops.NOTE, "BUG")


class Machine:
    """A memory with all that a program can name."""

    def __init__(self, *, stacks: bool = False) -> None:
        self.memory = Memory(stacks=stacks)
        self.shared = self.memory.static(Shared)
        self.domains = {name: self.memory.static(Domain, name) for name in ("rcu", "trace")}
        self.cpus = [self.memory.static(Cpu, index) for index in range(2)]

    def place(self, name: str) -> Any:
        return getattr(self.shared, name)

    def cpu(self, index: int | None) -> Cpu | None:
        return None if index is None else self.cpus[index]


class Interpreter:
    """Runs the code of one thread."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.acc = 0

    async def thread(self, code: Code) -> None:
        await self.run(code)
        await outcome(self.acc)

    async def run(self, code: Code) -> None:
        for instruction in code:
            await self.step(instruction)

    async def step(self, instruction: Instruction) -> None:
        place = self.machine.place
        match instruction:
            case Read(name, order):
                self.acc = await memory_op(ops.LOAD, "read", place(name), None, order)
            case Write(name, value, order):
                value = self.acc + 1 if value is None else value
                await memory_op(ops.STORE, "write", place(name), value, order)
            case Swap(name, value):
                self.acc = await xchg(place(name), value)
            case Cas(name, expected, new):
                self.acc = await cmpxchg(place(name), expected, new)
            case Modify(name, function, argument, order):
                self.acc = await rmw(place(name), function, argument, function, order)
            case Barrier(order):
                fence: Op[None] = Op(ops.FENCE, "fence", order=order)
                await fence
            case Choose(n):
                self.acc = await choose(n)
            case Expect(name, value):
                if await memory_op(ops.LOAD, "read", place(name), None, ops.ONCE) != value:
                    await bug()
            case Risk(n, fatal):
                self.acc = await choose(n)
                if self.acc in fatal:
                    await bug()
            case Await(name, value):
                await wait_until(at_least(value), place(name))
            case Meet(names, relation):
                await wait_until(RELATIONS[relation], *map(place, names))
            case Time():
                self.acc = await now()
            case Sleep(duration):
                await sleep(duration)
            case When(value, body):
                if self.acc == value:
                    await self.run(body)
            case Publish() | Follow() | Retire() | Touch():
                await self.objects(instruction)
            case _:
                await self.blocks(instruction)

    async def blocks(self, instruction: Instruction) -> None:
        machine = self.machine
        match instruction:
            case Locked(name, body, attempt):
                if not attempt:
                    await lock(machine.place(name))
                elif not await trylock(machine.place(name)):
                    return
                await self.run(body)
                await unlock(machine.place(name))
            case Reader(domain, body):
                section = new_section()
                await section_begin(machine.domains[domain], section, "read_lock")
                await self.run(body)
                await section_end(machine.domains[domain], section, "read_unlock")
            case Synchronize(domain):
                await self.wait(domain, await self.start(domain))
            case Call(domain, body):
                started = await self.start(domain)
                await self.fork(self.called, domain, started, body)
            case Fork(body, cpu, joined):
                thread = await self.fork(Interpreter(machine).thread, body, cpu=machine.cpu(cpu))
                if joined:
                    await join(thread)
            case Held(body):
                mine = current().cpu
                if mine is not None and mine.holder is not current():
                    await cpu_hold(mine, "hold")
                    await self.run(body)
                    await cpu_release(mine, "release")
                else:
                    await self.run(body)
            case _:
                raise NotImplementedError(instruction)

    async def objects(self, instruction: Instruction) -> None:
        place = self.machine.place
        match instruction:
            case Publish(name):
                await smp_store_release(place(name), await alloc(Node))
            case Follow(name, by_address, plain):
                order = ops.PLAIN if plain else ops.DEREF
                node: Node | None = await memory_op(ops.LOAD, "follow", place(name), None, order)
                self.acc = -1
                if node is not None:
                    self.acc = await (load_at(node.addr, 8) if by_address else load(node.value))
            case Retire(name, domain):
                node = await xchg(place(name), None)
                if node is not None:
                    if domain:
                        await self.wait(domain, await self.start(domain))
                    await free(node)
            case Touch(offset, size, write, add, by_address):
                region = self.machine.shared.data
                if add:
                    self.acc = await rmw_at(region.addr + offset, size, "add", write or 1, "add")
                elif by_address and write is not None:
                    await store_at(region.addr + offset, size, write)
                elif by_address:
                    self.acc = await load_at(region.addr + offset, size)
                else:
                    kind = ops.LOAD if write is None else ops.STORE
                    word = region.word(offset, size)
                    self.acc = await memory_op(kind, "word", word, write, ops.PLAIN) or 0

    async def start(self, domain: str) -> GracePeriod:
        return await gp_start(self.machine.domains[domain], "synchronize")

    async def wait(self, domain: str, started: GracePeriod) -> None:
        await gp_end(self.machine.domains[domain], started, "synchronize")

    async def called(self, domain: str, started: GracePeriod, body: Code) -> None:
        await self.wait(domain, started)
        await Interpreter(self.machine).thread(body)

    async def fork(self, function: Any, *args: Any, cpu: Cpu | None = None) -> Thread:
        name = f"{current().name}.{current().forks}"
        return await spawn(function, *args, name=name, cpu=cpu)


def memory_op(kind: int, name: str, place: Any, value: Any, order: int) -> Op[Any]:
    return Op(kind, name, place.addr, place.size, place, value, order)


def at_least(least: int) -> Callable[[int], bool]:
    return lambda value: value >= least


def main_of(program: Program, machine: Machine) -> Callable[[], Body]:
    """What the main thread runs: fork the program's threads, in order."""

    async def main() -> None:
        for nth, code in enumerate(program.threads):
            cpu = machine.cpu(program.cpu(nth))
            await spawn(Interpreter(machine).thread, code, name=f"t{nth}", cpu=cpu)

    return main

"""Programs as data: instructions, threads, programs."""

from collections.abc import Callable
from dataclasses import dataclass

from sim import ops


@dataclass(frozen=True)
class Instruction:
    """Base of all; `name` is a place of `Shared`, `body` what runs inside."""


Code = tuple[Instruction, ...]


@dataclass(frozen=True)
class Read(Instruction):
    """acc = name."""

    name: str
    order: int = ops.ONCE


@dataclass(frozen=True)
class Write(Instruction):
    """name = value, or name = acc + 1 without one."""

    name: str
    value: int | None = None
    order: int = ops.ONCE


@dataclass(frozen=True)
class Swap(Instruction):
    """acc = xchg(name, value)."""

    name: str
    value: int


@dataclass(frozen=True)
class Cas(Instruction):
    """acc = cmpxchg(name, expected, new)."""

    name: str
    expected: int
    new: int


@dataclass(frozen=True)
class Modify(Instruction):
    """acc = the old value of an atomic read-modify-write by `argument`."""

    name: str
    function: str = "add"
    argument: int = 1
    order: int = ops.FULL


@dataclass(frozen=True)
class Barrier(Instruction):
    """A fence."""

    order: int = ops.FULL


@dataclass(frozen=True)
class Choose(Instruction):
    """acc = choose(n)."""

    n: int = 2


@dataclass(frozen=True)
class Risk(Instruction):
    """acc = choose(n), and BUG if that is one of `fatal`."""

    n: int
    fatal: tuple[int, ...]


@dataclass(frozen=True)
class Await(Instruction):
    """Wait until name >= value."""

    name: str
    value: int = 1


#: Of the values of cells.
RELATIONS: dict[str, Callable[..., bool]] = {
    "equal": lambda *values: len(set(values)) == 1,
    "different": lambda *values: len(set(values)) == len(values),
    "one": lambda *values: sum(values) == 1,
    "many": lambda *values: sum(values) >= len(values),
    "falling": lambda *values: values[0] > values[-1],
    "not both": lambda *values: not all(values),
}


@dataclass(frozen=True)
class Meet(Instruction):
    """Wait until the values of several cells are in some relation (`RELATIONS`)."""

    names: tuple[str, ...]
    relation: str = "equal"


@dataclass(frozen=True)
class Expect(Instruction):
    """READ_ONCE, and BUG if it is something else."""

    name: str
    value: int


@dataclass(frozen=True)
class Time(Instruction):
    """acc = the time."""


@dataclass(frozen=True)
class Sleep(Instruction):
    """Sleep for `duration` ns."""

    duration: int


@dataclass(frozen=True)
class When(Instruction):
    """Run the body if acc == value."""

    value: int
    body: Code


@dataclass(frozen=True)
class Locked(Instruction):
    """Run the body under a lock; with `attempt`, only if the lock is free."""

    name: str
    body: Code
    attempt: bool = False


@dataclass(frozen=True)
class Reader(Instruction):
    """Run the body inside a section of the domain."""

    domain: str
    body: Code


@dataclass(frozen=True)
class Synchronize(Instruction):
    """Wait for a grace period of the domain."""

    domain: str


@dataclass(frozen=True)
class Call(Instruction):
    """Run the body in a thread of its own, after a grace period."""

    domain: str
    body: Code


@dataclass(frozen=True)
class Fork(Instruction):
    """Run the body in a thread of its own, on a CPU that others may share; perhaps join it."""

    body: Code
    cpu: int | None = None
    joined: bool = False


@dataclass(frozen=True)
class Held(Instruction):
    """Run the body with the thread's CPU held, if it has one."""

    body: Code


@dataclass(frozen=True)
class Publish(Instruction):
    """Allocate a node and let `name` point to it."""

    name: str


@dataclass(frozen=True)
class Follow(Instruction):
    """acc = name->value, or -1 if it points to nothing; by address or by field."""

    name: str
    by_address: bool = False
    plain: bool = False


@dataclass(frozen=True)
class Retire(Instruction):
    """Unpublish what `name` points to, wait for a grace period (of "": none), free it."""

    name: str
    domain: str = ""


@dataclass(frozen=True)
class Touch(Instruction):
    """Load (write None), store or add to `size` bytes of the byte region, by address or not."""

    offset: int
    size: int
    write: int | None = None
    add: bool = False
    by_address: bool = False


@dataclass(frozen=True)
class Program:
    """Threads that main forks, in order; `cpus` gives their CPUs, None for one of its own."""

    threads: tuple[Code, ...]
    cpus: tuple[int | None, ...] = ()

    def cpu(self, nth: int) -> int | None:
        """The CPU of the n-th thread."""
        return self.cpus[nth] if nth < len(self.cpus) else None


def has(code: Code, kind: type[Instruction]) -> bool:
    """Whether there is such an instruction in `code`, bodies included."""
    return any(isinstance(one, kind) or has(getattr(one, "body", ()), kind) for one in code)

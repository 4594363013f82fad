"""Modelled memory: lvalues, and the objects that hold them.

A :class:`Cell` is an address until it is awaited: it has no value in Python, only an operation
on it has (``await load(cell)``).  A :class:`Struct` is an object that is allocated, freed and
poisoned; its fields are cells, arrays of cells and regions of bytes, each at its offset, so
that BPF programs can reach them by address.  All state that two threads share lives here.

An attribute of a Struct that is *not* a cell is a constant of the object: set in
``__init__``, never changed, and reading it is no step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NoReturn, TypeVar, cast, final

from sim.errors import InternalError, MisuseError, UsedWithoutAwait

T = TypeVar("T")

WORD: Final = 8  # bytes of a machine word, and of a cell unless it says otherwise
POISON: Final = 0x6B  # what a freed byte reads as (the kernel's POISON_FREE)
_U64: Final = (1 << 64) - 1


def as_int(value: object) -> int:
    """What a machine word holding `value` contains: pointers become simulated addresses.

    Raises InternalError for a value that has no machine representation.
    """
    if value is None:
        return 0
    if isinstance(value, int):
        return int(value) & _U64
    addr = getattr(value, "addr", None)
    if isinstance(addr, int):
        return addr
    raise InternalError(f"{value!r} has no machine representation")


class Lvalue(Generic[T]):
    """A place in modelled memory: `addr`, `size` in bytes, and the object that it belongs to."""

    __slots__ = ("addr", "owner", "size")

    addr: int
    size: int
    owner: Struct

    @property
    def label(self) -> str:
        """The place by meaning: the object's label and the field."""
        return f"{self.owner.label}{self.owner.field_name(self)}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label}>"

    if not TYPE_CHECKING:
        # Hidden from the type checker, which finds these uses by itself (truthy-bool,
        # comparison-overlap) as long as it does not see these methods.

        def _used(self, how: str) -> NoReturn:
            raise UsedWithoutAwait(
                f"{self.label} was {how}: it is an address; write `await load(...)` "
                "(or READ_ONCE, ...) to get its value"
            )

        def __bool__(self) -> NoReturn:
            self._used("used as a truth value")

        def __eq__(self, other: object) -> NoReturn:
            self._used("compared")

        def __lt__(self, other: object) -> NoReturn:
            self._used("compared")

        __ne__ = __le__ = __gt__ = __ge__ = __lt__
        __hash__ = None

        def __add__(self, other: object) -> NoReturn:
            self._used("used in arithmetic")

        __radd__ = __sub__ = __rsub__ = __mul__ = __iadd__ = __add__

        def __int__(self) -> NoReturn:
            self._used("used as a number")

        __index__ = __int__

        def __iter__(self) -> NoReturn:
            self._used("iterated over")


@final
class Cell(Lvalue[T]):
    """A variable of one scalar or pointer: the field of an object.  `value` is for memory.py."""

    __slots__ = ("value",)

    value: T

    def __init__(self, owner: Struct, addr: int, size: int, value: T) -> None:
        self.owner = owner
        self.addr = addr
        self.size = size
        self.value = value


@final
class Word(Lvalue[int]):
    """1, 2, 4 or 8 bytes inside a :class:`Bytes` region, little-endian, unsigned."""

    __slots__ = ("_at", "_data")

    def __init__(self, region: Bytes, offset: int, size: int) -> None:
        self.owner = region.owner
        self.addr = region.addr + offset
        self.size = size
        self._data = region.data
        self._at = offset

    @property
    def value(self) -> int:
        """The bytes as an unsigned number; for memory.py."""
        return int.from_bytes(self._data[self._at : self._at + self.size], "little")

    @value.setter
    def value(self, value: int) -> None:
        masked = value & ((1 << (8 * self.size)) - 1)
        self._data[self._at : self._at + self.size] = masked.to_bytes(self.size, "little")


@final
class Bytes:
    """A region of plain bytes inside an object (map values): accessed as words of 1 to 8 bytes.

    `legal_races` says why unsynchronised accesses are allowed by design (empty: they are not).
    """

    __slots__ = ("addr", "data", "legal_races", "name", "owner")

    def __init__(
        self, owner: Struct, name: str, addr: int, size: int, legal_races: str = ""
    ) -> None:
        self.owner = owner
        self.name = name
        self.addr = addr
        self.data = bytearray(size)
        self.legal_races = legal_races

    def word(self, offset: int, size: int = WORD) -> Word:
        """The lvalue of `size` bytes at `offset`; MisuseError outside the region."""
        if size not in (1, 2, 4, 8) or not 0 <= offset <= len(self.data) - size:
            raise MisuseError(
                f"{self.owner.label}.{self.name} has {len(self.data)} bytes: "
                f"no word of {size} bytes at offset {offset}"
            )
        return Word(self, offset, size)


@final
class Cells(Generic[T]):
    """An array of cells inside an object, `stride` bytes apart."""

    __slots__ = ("_items", "addr", "name", "owner", "stride")

    def __init__(
        self, owner: Struct, name: str, addr: int, length: int, value: T, stride: int = WORD
    ) -> None:
        self.owner = owner
        self.name = name
        self.addr = addr
        self.stride = stride
        self._items = [Cell(owner, addr + i * stride, stride, value) for i in range(length)]

    def __getitem__(self, index: int) -> Cell[T]:
        if not 0 <= index < len(self._items):
            raise MisuseError(
                f"{self.owner.label}.{self.name} has {len(self._items)} cells: no index {index}"
            )
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Cell[T]]:
        return iter(self._items)

    if not TYPE_CHECKING:

        def __setitem__(self, index: int, value: object) -> NoReturn:
            raise MisuseError(
                f"assigning to {self.owner.label}.{self.name}[{index}]: "
                "write `await store(cell, value)` (or WRITE_ONCE, xchg, ...)"
            )


class _CellSpec:
    """What `cell()` leaves in a class body until the class is made."""

    __slots__ = ("default", "legal_races", "offset", "size", "weak")

    def __init__(
        self, default: object, offset: int | None, size: int, *, weak: bool, legal_races: str
    ) -> None:
        self.default = default
        self.offset = offset
        self.size = size
        self.weak = weak
        self.legal_races = legal_races


def cell(
    default: T,
    *,
    offset: int | None = None,
    size: int = WORD,
    weak: bool = False,
    legal_races: str = "",
) -> Cell[T]:
    """Declare a field of a Struct: ``refcnt: Cell[int] = cell(1)``.

    default      its value when the object is allocated
    offset       bytes from the object's start (default: after the field before it)
    size         bytes: 1, 2, 4 or 8
    weak         what it points to is not kept reachable by it (an id table)
    legal_races  why unsynchronised accesses to it are allowed by design (empty: they are not)
    """
    return cast(
        "Cell[T]",
        _CellSpec(default, offset, size, weak=weak, legal_races=legal_races),
    )


class Struct:
    """An object of modelled memory: allocated, freed, poisoned, never allocated again.

    Subclasses declare cells with :func:`cell`, and in ``__init__`` add arrays and regions
    whose size depends on arguments (:meth:`add_cells`, :meth:`add_bytes`), set constants, and
    give cells their first value (:meth:`initial`).  Objects are made by ``await alloc(...)``,
    or by ``Memory.static`` for what exists before the first thread runs.

    KIND   what the object is called in labels (default: the class name)
    TEXT   whether it holds instructions: then it lies in the text region
    label  KIND, allocating thread and its n-th allocation: the same in every run in which
           that thread does the same, whatever the others do
    addr   simulated virtual address; size: bytes
    freed  whether it has been freed
    """

    KIND: ClassVar[str] = ""
    TEXT: ClassVar[bool] = False
    _specs: ClassVar[dict[str, _CellSpec]] = {}

    label: str
    addr: int
    size: int
    freed: bool

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        specs = dict(cls._specs)
        for name, value in list(vars(cls).items()):
            if isinstance(value, _CellSpec):
                specs[name] = value
                delattr(cls, name)
        cls._specs = specs
        if "KIND" not in vars(cls):
            cls.KIND = cls.__name__

    def place(self, label: str, addr: int) -> None:
        """Lay out the declared cells at `addr`.  Called by memory.py before ``__init__``."""
        put = object.__setattr__
        put(self, "label", label)
        put(self, "addr", addr)
        put(self, "freed", False)
        lvalues: dict[int, Cell[Any]] = {}
        end = 0
        for name, spec in self._specs.items():
            offset = end if spec.offset is None else spec.offset
            made = Cell(self, addr + offset, spec.size, spec.default)
            lvalues[offset] = made
            put(self, name, made)
            end = max(end, offset + spec.size)
        put(self, "_at", lvalues)
        put(self, "_regions", [])
        put(self, "size", end)

    def add_cells(
        self, name: str, length: int, value: T, *, offset: int | None = None, stride: int = WORD
    ) -> None:
        """Add the array `name` of `length` cells (in ``__init__`` only)."""
        start = self.size if offset is None else offset
        array: Cells[T] = Cells(self, name, self.addr + start, length, value, stride)
        object.__setattr__(self, name, array)
        for made in array:
            self._at[made.addr - self.addr] = made
        object.__setattr__(self, "size", max(self.size, start + length * stride))

    def add_bytes(
        self, name: str, length: int, *, offset: int | None = None, legal_races: str = ""
    ) -> None:
        """Add the zeroed byte region `name` of `length` bytes (in ``__init__`` only)."""
        start = self.size if offset is None else offset
        region = Bytes(self, name, self.addr + start, length, legal_races)
        object.__setattr__(self, name, region)
        self._regions.append(region)
        object.__setattr__(self, "size", max(self.size, start + length))

    def initial(self, place: Cell[T], value: T) -> None:
        """Give a cell its first value (in ``__init__`` only: nobody else sees the object yet)."""
        place.value = value

    def lvalue(self, offset: int, size: int) -> Lvalue[Any] | None:
        """The place at `offset`: a cell, or a word of a region; None if there is none."""
        found = self._at.get(offset)
        if found is not None:
            return found if found.size >= size else None
        for region in self._regions:
            at = self.addr + offset - region.addr
            if 0 <= at <= len(region.data) - size:
                return region.word(at, size)
        return None

    def field_name(self, place: Lvalue[Any]) -> str:
        """How the field at `place` is written after the object: ``.refcnt``, ``.ptrs[2]``."""
        for name, value in vars(self).items():
            if value is place:
                return f".{name}"
            if isinstance(value, Cells) and value.addr <= place.addr < (
                value.addr + len(value) * value.stride
            ):
                return f".{name}[{(place.addr - value.addr) // value.stride}]"
            if isinstance(value, Bytes) and value.addr <= place.addr < value.addr + len(value.data):
                return f".{name}+{place.addr - value.addr}"
        raise InternalError(f"{self.label} has no field at {place.addr:#x}")

    def legal_races(self, place: Lvalue[Any]) -> str:
        """Why unsynchronised accesses to `place` are allowed by design; empty: they are not."""
        for region in self._regions:
            if region.addr <= place.addr < region.addr + len(region.data):
                return region.legal_races
        for name, spec in self._specs.items():
            if vars(self)[name] is place:
                return spec.legal_races
        return ""

    def pointers(self) -> Iterator[Struct]:
        """Objects that this one's cells (weak ones excepted) and constants point to."""
        weak = {vars(self)[name].addr for name, spec in self._specs.items() if spec.weak}
        for made in self._at.values():
            if made.addr not in weak:
                yield from _structs(made.value)
        for name, value in vars(self).items():
            if not name.startswith("_"):
                yield from _structs(value)

    def may_be_lost(self) -> bool:
        """Whether it is no leak that nothing points to it any more."""
        return False

    def __repr__(self) -> str:
        return f"<{self.label}>"

    if TYPE_CHECKING:
        _at: dict[int, Cell[Any]]
        _regions: list[Bytes]
    else:

        def __setattr__(self, name: str, value: object) -> None:
            if isinstance(vars(self).get(name), Lvalue | Cells | Bytes):
                raise MisuseError(
                    f"assigning to {self.label}.{name}: write `await store(x.{name}, value)` "
                    "(or WRITE_ONCE, xchg, ...); in __init__, `self.initial(self.{name}, value)`"
                )
            object.__setattr__(self, name, value)


def _structs(value: object) -> Iterator[Struct]:
    """The objects inside a value: a pointer, or a tuple, list or mapping of pointers."""
    if isinstance(value, Struct):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _structs(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _structs(item)

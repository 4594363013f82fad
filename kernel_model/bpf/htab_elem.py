"""kernel/bpf/hashtab.c, include/linux/rculist_nulls.h (v5.10): buckets of a hash, their elements

A bucket is a list that ends in a marker with the bucket's number ("nulls"). Readers walk it without
a lock. A preallocated element can be taken out and put into another bucket while a reader stands on
it; the marker tells the reader that it has ended up elsewhere.

An element is not an object of its own, since preallocated ones share an area: a pointer to an
element is the area and a number.

Not modelled: `pprev`, which only holders of the bucket's lock use (it is known from the walk to the
element); LRU nodes; RCU heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from kernel_model.bpf.map import (
    MAP_VALUE_RACES,
    BpfMap,
    MapShape,
    Packed,
    ValuePtr,
    round_up,
    words,
)
from kernel_model.rcu.tree import rcu_assign_pointer, rcu_dereference_raw
from sim.cells import Bytes, Cell, Lvalue, Word
from sim.macros import WRITE_ONCE, load, store

if TYPE_CHECKING:
    from sim.threads import Thread

FNODE: Final = 8  # offsetof(struct htab_elem, fnode), so that readers still find hash_node.next
HASH: Final = 40
KEY: Final = 48
SIZEOF_BUCKET: Final = 16


class HtabElem(NamedTuple):
    """A pointer to a struct htab_elem.

    next        hash_node: the next element of the bucket, or the marker at its end
    fnode_next  the next element of the free list
    """

    area: HtabElems
    nth: int

    @property
    def addr(self) -> int:
        """What the pointer is in a register."""
        return self.area.addr + self.nth * self.area.elem_size

    @property
    def next(self) -> Cell[Node]:
        """The next element of the bucket, or the marker at its end."""
        return self.area.cell_at(self.nth, 0)

    @property
    def fnode_next(self) -> Cell[HtabElem | None]:
        """The next element of the free list."""
        return self.area.cell_at(self.nth, FNODE)

    @property
    def hash(self) -> Word:
        """The hash of the key."""
        return self.area.elems.word(self.nth * self.area.elem_size + HASH, 4)

    @property
    def key(self) -> ValuePtr:
        """Where the key is."""
        return ValuePtr(self.area.elems, self.nth * self.area.elem_size + KEY)

    @property
    def value(self) -> ValuePtr:
        """Where the value is."""
        return ValuePtr(self.area.elems, self.nth * self.area.elem_size + self.area.value_at)

    @property
    def ptr(self) -> Cell[BpfMap]:
        """The value of a hash of maps."""
        return self.area.cell_at(self.nth, self.area.value_at)


Node = HtabElem | int


@final
class HtabElems(Packed):
    """Memory for one element, or for all that a map preallocates."""

    KIND = "htab_elem"
    elems: Bytes

    def __init__(self, like: MapShape, count: int, *, fd: bool) -> None:
        """fd: whether the values are pointers."""
        super().__init__()
        self.value_at: Final = KEY + round_up(like.key_size, 8)
        self.elem_size: Final = self.value_at + round_up(like.value_size, 8)
        self.add_bytes("elems", count * self.elem_size, legal_races=MAP_VALUE_RACES)
        for i in range(count):
            start = i * self.elem_size
            self.embed(f"[{i}].hash_node.next", start, 8, 0)
            self.embed(f"[{i}].fnode.next", start + FNODE, 8, None)
            if fd:
                self.embed(f"[{i}].value+0", start + self.value_at, 8, None)
            elif like.spin_lock_off is not None:
                at = start + self.value_at + like.spin_lock_off
                self.embed(f"[{i}].value.lock", at, 4, None)

    def field_name(self, place: Lvalue[Any]) -> str:
        """How the field at `place` is written after the area: ``[2].key+0``."""
        if place.addr in self.suffixes:
            return self.suffixes[place.addr]
        nth, at = divmod(place.addr - self.addr, self.elem_size)
        if at < KEY:
            return f"[{nth}].hash"
        if at < self.value_at:
            return f"[{nth}].key+{at - KEY}"
        return f"[{nth}].value+{at - self.value_at}"

    def cell_at(self, nth: int, offset: int) -> Cell[Any]:
        """The cell at an offset of an element."""
        return self._at[nth * self.elem_size + offset]


class Bucket(NamedTuple):
    """struct bucket."""

    head: Cell[Node]
    lock: Cell[Thread | None]


@final
class Buckets(Packed):
    """All buckets of a map, empty at first."""

    KIND = "buckets"

    def __init__(self, n_buckets: int) -> None:
        super().__init__()
        self.bucket: Final = [
            Bucket(
                self.embed(f"[{i}].head", SIZEOF_BUCKET * i, 8, nulls_marker(i)),
                self.embed(f"[{i}].raw_lock", SIZEOF_BUCKET * i + 8, 4, None),
            )
            for i in range(n_buckets)
        ]


def nulls_marker(value: int) -> int:
    return value << 1 | 1


def get_nulls_value(marker: int) -> int:
    return marker >> 1


# -- lists ---------------------------------------------------------------------------------------


async def hlist_nulls_add_head_rcu(n: HtabElem, head: Cell[Node]) -> None:
    first = await load(head)
    await store(n.next, first)
    await rcu_assign_pointer(head, n)


async def hlist_nulls_del_rcu(n: HtabElem, pprev: Cell[Node]) -> Node:
    """Unlink; what followed. The element still leads readers that stand on it to the rest."""
    next = await load(n.next)
    await WRITE_ONCE(pprev, next)
    return next


async def lookup_elem_raw(
    head: Cell[Node], hash: int, key: bytes
) -> tuple[HtabElem | None, Cell[Node]]:
    """The element with that key, under the bucket's lock, and the pointer that points to it."""
    pprev = head
    n = await rcu_dereference_raw(head)
    while isinstance(n, HtabElem):
        if await _has_key(n, hash, key):
            return n, pprev
        pprev = n.next
        n = await rcu_dereference_raw(pprev)
    return None, pprev


async def lookup_nulls_elem_raw(
    head: Cell[Node], hash: int, key: bytes, n_buckets: int
) -> HtabElem | None:
    """The element with that key, without the bucket's lock."""
    while True:
        n = await rcu_dereference_raw(head)
        while isinstance(n, HtabElem):
            if await _has_key(n, hash, key):
                return n
            n = await rcu_dereference_raw(n.next)
        if get_nulls_value(n) == hash & (n_buckets - 1):
            return None


async def _has_key(l: HtabElem, hash: int, key: bytes) -> bool:
    if await load(l.hash) != hash:
        return False
    region, offset = l.key
    for at, size in words(0, len(key)):
        word = int.from_bytes(key[at : at + size], "little")
        if await load(region.word(offset + at, size)) != word:
            return False
    return True


async def read_key(l: HtabElem, key_size: int) -> bytes:
    """The key of an element that nothing keeps from being reused."""
    region, offset = l.key
    key = bytearray()
    for at, size in words(0, key_size):
        word = await load(region.word(offset + at, size))
        key += word.to_bytes(size, "little")
    return bytes(key)


async def write_key(l: HtabElem, key: bytes) -> None:
    """Give an element its key."""
    region, offset = l.key
    for at, size in words(0, len(key)):
        word = int.from_bytes(key[at : at + size], "little")
        await store(region.word(offset + at, size), word)

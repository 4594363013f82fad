"""A log of changes that can be taken back, newest first.

Who changes state that an execution may have to go back to (memory, threads, detectors) writes down
here what was there before; :meth:`Log.rewind` puts it back.  Where nobody will go back there is no
log (None), and writing it down costs a comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

Entry = tuple[Callable[[Any, Any, Any], None], Any, Any, Any]

ABSENT: Final = object()  # the value of an item that is not there


@final
class Log:
    """Changes in the order in which they were made.

    entries  what to call, and with what, to take each back
    """

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: Final[list[Entry]] = []

    def attribute(self, owner: object, name: str) -> None:
        """`owner`'s attribute is about to be set."""
        self.entries.append((_SET, owner, name, getattr(owner, name)))

    def item(self, owner: dict[Any, Any], key: object) -> None:
        """``owner[key]`` is about to be set or deleted."""
        self.entries.append((PUT_ITEM, owner, key, owner.get(key, ABSENT)))

    def items(self, owner: list[Any]) -> None:
        """Items of a list are about to be set."""
        self.entries.append((_PUT_ITEMS, owner, owner[:], None))

    def grown(self, owner: list[Any]) -> None:
        """Something has been appended to a list."""
        self.entries.append((_SHRINK, owner, None, None))

    def call(self, function: Callable[[Any, Any, Any], None], *args: Any) -> None:
        """To take back what was done, call `function` with the (three) arguments."""
        one, two, three = args
        self.entries.append((function, one, two, three))

    def rewind(self, mark: int) -> None:
        """Take back what was written down since there were `mark` entries."""
        taken_back = self.entries[mark:]
        del self.entries[mark:]
        taken_back.reverse()
        for function, one, two, three in taken_back:
            if function is PUT_ITEM:
                _put_item(one, two, three)  # the most frequent one by far
            else:
                function(one, two, three)


def _put_item(owner: dict[Any, Any], key: object, value: object) -> None:
    if value is not ABSENT:
        owner[key] = value
    elif key in owner:
        del owner[key]


def _put_items(owner: list[Any], items: list[Any], _: None) -> None:
    owner[:] = items


def _shrink(owner: list[Any], _: None, __: None) -> None:
    owner.pop()


# What stands in entries: as constants, which are at hand where a function would be looked up.
_SET: Final = setattr
PUT_ITEM: Final = _put_item
_PUT_ITEMS: Final = _put_items
_SHRINK: Final = _shrink

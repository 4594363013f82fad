"""Layout of objects, places by address, labels, pointers."""

from typing import Any

import pytest

from sim.cells import Bytes, Cell, Cells, Struct, as_int, cell
from sim.errors import InternalError, MisuseError
from sim.memory import Memory


class Inner(Struct):
    KIND = "inner"
    value: Cell[int] = cell(3)


class Layout(Struct):
    a: Cell[int] = cell(1, size=4)
    b: Cell[int] = cell(2, size=4)
    far: Cell[Inner | None] = cell(None, offset=32)
    weak: Cell[Inner | None] = cell(None, weak=True)
    racy: Cell[int] = cell(0, legal_races="counted loosely")
    slots: Cells[Inner | None]
    data: Bytes
    loose: Bytes

    def __init__(self, constant: Inner | None = None) -> None:
        self.constant = constant
        self.add_cells("slots", 3, None, stride=16)
        self.add_bytes("data", 12)
        self.add_bytes("loose", 4, legal_races="a hint")
        self.initial(self.a, 10)


class More(Layout):
    KIND = "more"
    c: Cell[int] = cell(5)


@pytest.fixture
def layout() -> Layout:
    return Memory().static(Layout)


def offset(place: Any) -> int:
    return int(place.addr - place.owner.addr)


def test_fields_lie_one_after_another_unless_they_say_where(layout: Layout) -> None:
    places = (layout.a, layout.b, layout.far, layout.weak, layout.racy)

    assert [offset(place) for place in places] == [0, 4, 32, 40, 48]
    assert [offset(place) for place in layout.slots] == [56, 72, 88]
    assert (offset(layout.data), offset(layout.loose)) == (104, 116)
    assert layout.size == 120


def test_a_subclass_adds_fields_behind_those_of_its_base() -> None:
    more = Memory().static(More)

    assert offset(more.c) == 56
    assert offset(more.slots[0]) == 64
    assert more.label == "more.0"


def test_first_values(layout: Layout) -> None:
    assert (layout.a.value, layout.b.value, layout.far.value) == (10, 2, None)
    assert [place.value for place in layout.slots] == [None] * 3


def test_labels_say_object_and_field(layout: Layout) -> None:
    assert layout.label == "Layout.0"
    assert layout.far.label == "Layout.0.far"
    assert layout.slots[2].label == "Layout.0.slots[2]"
    assert layout.data.word(4, 4).label == "Layout.0.data+4"
    assert repr(layout.far) == "<Cell Layout.0.far>"
    assert repr(layout) == "<Layout.0>"


def test_a_place_of_another_object_has_no_label_here(layout: Layout) -> None:
    stranger = Memory().static(Layout, None)
    object.__setattr__(stranger.a, "addr", 0)

    with pytest.raises(InternalError, match=r"Layout\.0 has no field at 0x0"):
        layout.field_name(stranger.a)


def test_places_by_offset(layout: Layout) -> None:
    assert layout.lvalue(4, 4) is layout.b
    assert layout.lvalue(4, 1) is layout.b
    assert layout.lvalue(4, 8) is None, "wider than the cell"
    assert layout.lvalue(5, 1) is None, "inside a cell"
    assert layout.lvalue(8, 4) is None, "a hole"
    assert layout.lvalue(72, 8) is layout.slots[1]
    word = layout.lvalue(106, 2)
    assert word is not None
    assert word.label == "Layout.0.data+2"
    assert layout.lvalue(112, 8) is None, "across the end of the region"


def test_words_are_little_endian_and_unsigned(layout: Layout) -> None:
    layout.data.word(0, 4).value = 0x1_0102_0304

    assert layout.data.data[:4] == bytes([4, 3, 2, 1])
    assert layout.data.word(1, 2).value == 0x0203
    layout.data.word(0, 1).value = -1
    assert layout.data.word(0, 1).value == 0xFF


def test_an_index_that_is_not_there(layout: Layout) -> None:
    with pytest.raises(MisuseError, match=r"Layout\.0\.slots has 3 cells: no index 3"):
        _ = layout.slots[3]
    with pytest.raises(MisuseError, match="no index -1"):
        _ = layout.slots[-1]
    assert len(layout.slots) == 3


@pytest.mark.parametrize(("at", "size"), [(10, 4), (-1, 1), (0, 3), (12, 1)])
def test_a_word_that_is_not_there(layout: Layout, at: int, size: int) -> None:
    with pytest.raises(
        MisuseError, match=f"data has 12 bytes: no word of {size} bytes at offset {at}"
    ):
        layout.data.word(at, size)


def test_legal_races_belong_to_cells_and_regions(layout: Layout) -> None:
    assert layout.legal_races(layout.racy) == "counted loosely"
    assert layout.legal_races(layout.a) == ""
    assert layout.legal_races(layout.slots[0]) == ""
    assert layout.legal_races(layout.loose.word(0, 2)) == "a hint"
    assert layout.legal_races(layout.data.word(0, 2)) == ""


def test_pointers_are_cells_arrays_and_constants_but_not_weak_ones() -> None:
    memory = Memory()
    inner = [memory.static(Inner) for _ in range(5)]
    layout = memory.static(Layout, inner[0])
    layout.far.value = inner[1]
    layout.weak.value = inner[2]
    layout.slots[1].value = inner[3]
    layout.slots[2].value = (inner[4], None, 7)  # type: ignore[assignment]  # any word will do

    assert sorted(found.label for found in layout.pointers()) == [
        "inner.0",
        "inner.1",
        "inner.3",
        "inner.4",
    ]


def test_what_a_machine_word_contains(layout: Layout) -> None:
    assert as_int(None) == 0
    assert as_int(-1) == 2**64 - 1
    assert as_int(True) == 1
    assert as_int(layout) == layout.addr
    with pytest.raises(InternalError, match="'text' has no machine representation"):
        as_int("text")

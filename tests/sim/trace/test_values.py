"""Rendering values: total, deterministic, and always JSON."""

from enum import Flag
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cells import Struct, cell
from sim.memory import Memory
from sim.trace.values import cells_of, render

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())  # lone surrogates, too
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.frozensets(st.integers() | st.text())
    ),
)


@given(ANYTHING)
def test_anything_becomes_json_that_reads_back(value: Any) -> None:
    text = msgspec.json.encode(render(value))
    assert msgspec.json.encode(msgspec.json.decode(text)) == text


def test_deep_values_are_cut() -> None:
    value: Any = ()
    for _ in range(5000):
        value = (value,)
    assert render(value) == [[[[[[[["..."]]]]]]]]


@pytest.mark.parametrize(
    ("number", "rendered"),
    [
        (2**53 - 1, 2**53 - 1),
        (2**53, "0x20000000000000"),
        (-(2**53), "-0x20000000000000"),
        (2**70, "0x400000000000000000"),
    ],
)
def test_numbers_that_json_readers_round_are_hex(number: int, rendered: object) -> None:
    assert render(number) == rendered


class Bits(Flag):
    ONE = 1


def test_flag_without_bits_is_its_number() -> None:
    assert [render(Bits.ONE), render(Bits(0))] == ["ONE", 0]


class Other(Struct):
    pass


class Thing(Struct):
    one = cell(1)
    zero = cell(0)
    nothing = cell(None)

    def __init__(self, other: Struct) -> None:
        self.add_cells("refs", 3, other)
        self.add_bytes("data", 4)
        self.add_bytes("empty", 4)
        self.data.data[1] = 5  # type: ignore[attr-defined]  # made by add_bytes


def test_state_of_an_object_leaves_zeros_out() -> None:
    memory = Memory()
    other = memory.static(Other)
    assert cells_of(memory.static(Thing, other)) == {
        ".one": 1,
        ".refs[0]": "Other.0",
        ".refs[1]": "Other.0",
        ".refs[2]": "Other.0",
        ".data": "0005",
    }


def test_parts_of_an_object_are_labelled() -> None:
    memory = Memory()
    thing: Any = memory.static(Thing, memory.static(Other))
    parts = (thing, thing.one, thing.refs, thing.refs[1], thing.data, thing.data.word(2, 2))
    assert render(parts) == [
        "Thing.0",
        "Thing.0.one",
        "Thing.0.refs",
        "Thing.0.refs[1]",
        "Thing.0.data",
        "Thing.0.data+2",
    ]

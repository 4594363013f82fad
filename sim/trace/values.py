"""How modelled values and places are called in a trace: by meaning, the same in every run."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from sim import ops
from sim.cells import Bytes, Cell, Cells, Lvalue, Struct
from sim.events import Event
from sim.memory import Memory
from sim.ops import Op
from sim.sections import Domain, GracePeriod
from sim.threads import Spawn, Thread
from sim.trace.format import Value

_EXACT: Final = 1 << 53  # integers below it survive every JSON reader
_DEPTH: Final = 8
_IDENTITY: Final = re.compile(r" at 0x[0-9a-f]+")  # of `<f at 0x7f...>` in a Python message


def render(value: Any, depth: int = _DEPTH) -> Value:
    """`value` as JSON: objects by label, threads and functions by name, bytes and big numbers hex.

    What is no value but a Python object of some class is rendered as that class.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return value.name or render(value.value)  # a flag without bits has no name
    if isinstance(value, int):
        return int(value) if -_EXACT < value < _EXACT else hex(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, Exception):
        return render(f"{type(value).__name__}: {_IDENTITY.sub('', str(value))}")
    named = _name(value)
    if named:
        return named
    return _compound(value, depth - 1) if depth else "..."


def _name(value: Any) -> str:
    """What a thing that has a name is called; empty for a thing that has none."""
    if isinstance(value, Domain):
        return value.name
    if isinstance(value, Struct | Lvalue):
        return value.label
    if isinstance(value, Thread):
        return value.name
    if isinstance(value, Cells | Bytes):
        return f"{value.owner.label}.{value.name}"
    if isinstance(value, Op):
        return value.name
    return str(getattr(value, "__name__", "")) if callable(value) else ""


def _compound(value: Any, depth: int) -> Value:
    if isinstance(value, tuple | list):
        return [render(item, depth) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((render(item, depth) for item in value), key=repr)
    if isinstance(value, Mapping):
        return {str(render(key, 1)): render(item, depth) for key, item in value.items()}
    if isinstance(value, GracePeriod):
        return render(value.waits_for, depth)
    if isinstance(value, Spawn):
        return [render(value.function), *render(value.args, depth)]
    declared = getattr(type(value), "__dataclass_params__", None)
    if declared is not None and declared.frozen:  # a value; others are objects with an identity
        fields = dataclasses.fields(value)
        return {field.name: render(getattr(value, field.name), depth) for field in fields}
    return f"<{type(value).__name__}>"


def cells_of(made: Struct) -> dict[str, Value]:
    """The fields of an object that are not zero, by the name that follows its label."""
    found: dict[str, Value] = {}
    for name, field in vars(made).items():
        if isinstance(field, Cell):
            found[f".{name}"] = render(field.value)
        elif isinstance(field, Cells):
            found |= {f".{name}[{i}]": render(cell.value) for i, cell in enumerate(field)}
        elif isinstance(field, Bytes):
            found[f".{name}"] = field.data.rstrip(b"\0").hex() or 0
    return {name: value for name, value in found.items() if value not in (None, 0)}


def label_of(event: Event, memory: Memory) -> str:
    """What a step touched."""
    op = event.op
    if op.kind == ops.ALLOC or op.kind == ops.FORK:
        return _name(event.result)
    return place_of(op, memory)


def place_of(op: Op[Any], memory: Memory) -> str:
    """What an operation is about, whether it has happened or not; empty for a thread's own."""
    if op.kind == ops.WAIT:
        return ", ".join(cell.label for cell in op.operand[1])
    if op.kind == ops.EXIT:
        return ""
    if op.kind == ops.FETCH and op.target is not None:
        image: Struct = op.target.owner
        return f"{image.label}+{op.operand - image.addr:#x}"
    if op.target is not None:
        return _name(op.target)
    if op.kind not in ops.MEMORY:
        return ""
    owner = memory.object_at(op.addr)
    if owner is None:
        return hex(op.addr)
    place = owner.lvalue(op.addr - owner.addr, op.size)
    return place.label if place is not None else f"{owner.label}+{op.addr - owner.addr}"


def value_at(op: Op[Any], memory: Memory) -> Any:
    """What the place that a memory operation touches contains now; None if there is none."""
    place: Any = op.target
    if place is None:
        owner = memory.object_at(op.addr)
        place = owner.lvalue(op.addr - owner.addr, op.size) if owner is not None else None
    return None if place is None else place.value

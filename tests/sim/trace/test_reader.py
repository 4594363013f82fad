"""Whatever is in the file, the answer is a trace or a TraceError that names the line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import TraceError
from sim.strategies.replay import Choices
from sim.trace.format import Trace
from sim.trace.reader import parse_trace, read_trace
from tests.sim.trace.programs import USE_AFTER_FREE, builder, record

WHOLE = record(builder(), Choices(USE_AFTER_FREE))
LINES = WHOLE.splitlines(keepends=True)


def problem(data: bytes, *, allow_partial: bool = False) -> tuple[int, str]:
    with pytest.raises(TraceError) as caught:
        parse_trace(data, "x.jsonl", allow_partial=allow_partial)
    text = str(caught.value)
    assert text.startswith("x.jsonl")
    assert text.isprintable()  # one line
    return caught.value.line, caught.value.problem


def either(data: bytes, *, allow_partial: bool) -> Trace | TraceError:
    try:
        return parse_trace(data, "x.jsonl", allow_partial=allow_partial)
    except TraceError as error:
        return error


def edited(number: int, **changes: Any) -> bytes:
    """The trace with fields of line `number` changed (None: taken out)."""
    line = json.loads(LINES[number - 1]) | changes
    kept = {key: value for key, value in line.items() if value is not None}
    text = json.dumps(kept, separators=(",", ":")).encode() + b"\n"
    return b"".join([*LINES[: number - 1], text, *LINES[number:]])


# -- truncated -----------------------------------------------------------------------------------


@pytest.mark.parametrize("allow_partial", [False, True])
def test_cut_anywhere_is_an_error_or_a_partial_trace(allow_partial: bool) -> None:
    readable = len(LINES[0] + LINES[1]) - 1  # from here on, header and state are whole
    for size in range(len(WHOLE) - 1):
        data = WHOLE[:size]
        complete = sum(size >= len(b"".join(LINES[: n + 1])) - 1 for n in range(len(LINES)))
        read = either(data, allow_partial=allow_partial)
        if isinstance(read, TraceError):
            assert not allow_partial or size < readable
            assert read.line <= complete + 1
        else:
            assert allow_partial
            assert read.verdict is None
            assert read.last_line == complete


def test_missing_last_newline_is_no_damage() -> None:
    assert parse_trace(WHOLE[:-1], "x") == parse_trace(WHOLE, "x")


def test_partial_trace_says_where_it_ends() -> None:
    data = b"".join(LINES[:6]) + LINES[6][:10]
    assert problem(data) == (
        6,
        "no verdict: line 7 is cut off, the run was killed or the file truncated",
    )
    trace = parse_trace(data, "x", allow_partial=True)
    assert (trace.last_line, len(trace.events), trace.findings) == (6, 4, ())


def test_missing_verdict_says_where_it_ends() -> None:
    data = b"".join(LINES[:-1])
    assert problem(data) == (
        len(LINES) - 1,
        f"no verdict: it ends with line {len(LINES) - 1}, the run was killed or the file truncated",
    )


# -- not a trace at all --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "line", "part"),
    [
        (b"", 0, "the file is empty"),
        (b"\n", 1, "damaged"),
        (b"\n\n\n", 1, "damaged"),
        (b"hello\n", 1, "not an rcusim trace: text that does not begin"),
        (b"[1, 2]\n", 1, "not an rcusim trace: text"),
        (b'{"format":"perfetto","version":1}\n', 1, "not an rcusim trace: text"),
        (b"\x7fELF\x02\x01\x01\x00\n\x00\x00", 1, "not an rcusim trace: binary data"),
        (b"\x00" * 100, 1, "not an rcusim trace: binary data"),
        ("ünïcode".encode("latin-1"), 1, "not an rcusim trace: binary data"),
        (b'{"for', 1, "the file ends within the header"),
        (LINES[0], 2, "the file ends before the initial state"),
        (LINES[0] + LINES[1][:5], 2, "the file ends before the initial state"),
    ],
)
@pytest.mark.parametrize("allow_partial", [False, True])
def test_foreign_files(data: bytes, line: int, part: str, allow_partial: bool) -> None:
    where, text = problem(data, allow_partial=allow_partial)
    assert where == line
    assert part in text


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(TraceError, match="cannot be read: Is a directory"):
        read_trace(tmp_path)
    with pytest.raises(TraceError, match="cannot be read: embedded null"):
        read_trace("a\0b")


def test_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "box.jsonl"
    path.write_bytes(WHOLE)
    assert read_trace(path) == parse_trace(WHOLE, str(path))


@given(st.binary())
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    problem(data)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_changed_byte_is_refused_or_harmless(at: int, byte: int) -> None:
    data = WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :]
    read = either(data, allow_partial=True)
    assert not isinstance(read, TraceError) or read.line <= len(LINES) + 1


# -- damaged -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "line", "part"),
    [
        (edited(1, version=2), 1, "trace version 2; this rcusim reads version 1"),
        (edited(1, version="1"), 1, "not a valid header: Expected `int`, got `str` - at `$.ver"),
        (edited(1, workload=None), 1, "not a valid header: Object missing required field"),
        (edited(1, added=1), 1, "not a valid header: Object contains unknown field `added`"),
        (edited(2, objects=3), 2, "not a valid initial state"),
        (edited(5, thread=4), 5, "not a valid event: Expected `str`, got `int` - at `$.thread`"),
        (edited(5, **{"bad\x1b": 4}), 5, "unknown field `bad\\x1b`"),
        (edited(5, step=7), 5, "step 7 where step 2 was expected"),
        (edited(7, choice=2), 7, "step 4 has an impossible choice"),
        (edited(7, choice=-1), 7, "step 4 has an impossible choice"),
        (edited(7, choice=1), 7, "step 4 has an impossible choice"),
        (edited(7, choice=None), 7, "step 4 has an impossible choice"),
        (edited(7, enabled=None), 7, "step 4 has an impossible choice"),
        (edited(9, choice=3), 9, "step 6 has an impossible choice"),
        (edited(9, choice=None), 9, "step 6 has an impossible choice"),
        (edited(9, enabled=["writer"]), 9, "step 6 has an impossible choice"),
        (edited(len(LINES), steps=3), len(LINES), "the verdict is of 3 steps, not 10"),
        (edited(len(LINES), steps=None), len(LINES), "not a valid verdict"),
        (b"".join([*LINES[:4], *LINES[5:]]), 5, "step 3 where step 2 was expected"),
        (b"".join([*LINES[:4], b"\n", *LINES[4:]]), 5, "damaged: Input data was truncated"),
        (b"".join([*LINES[:4], b"{]\n", *LINES[4:]]), 5, "damaged: JSON is malformed"),
        (b"".join([*LINES[:4], b'{"op":"\xff"}\n', *LINES[4:]]), 5, "damaged: not UTF-8"),
        (
            b"".join([*LINES[:4], b'{"read":' + b"[" * 10**5 + b"\n", *LINES[4:]]),
            5,
            "damaged: nested too deeply",
        ),
        (WHOLE + LINES[-1], len(LINES), "lines follow the verdict"),
        (WHOLE + LINES[3], len(LINES), "lines follow the verdict"),
        (WHOLE + b'{"st', len(LINES) + 1, "lines follow the verdict"),
    ],
)
@pytest.mark.parametrize("allow_partial", [False, True])
def test_damage_names_the_line(data: bytes, line: int, part: str, allow_partial: bool) -> None:
    where, text = problem(data, allow_partial=allow_partial)
    assert where == line
    assert part in text

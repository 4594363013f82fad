"""Reading a trace back: whatever is in the file, the answer is a Trace or a TraceError."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET

from sim.errors import TraceError
from sim.trace.format import FORMAT, VERSION, EventRecord, Header, State, Trace, Verdict, plain

L = TypeVar("L")

_HEADER: Final = f'{{"format":"{FORMAT}"'.encode()  # how a header line begins
_VERDICT: Final = b'{"verdict"'  # how a verdict line begins, and no other


class _Envelope(msgspec.Struct):
    """What every version of the header has."""

    format: str
    version: int


def read_trace(path: str | Path, *, allow_partial: bool = False) -> Trace:
    """The trace in the file `path`.

    allow_partial  accept a trace without a verdict, of a run that was killed; its last line may
                   be cut off

    Raises TraceError, which names the line, for everything else that is not a whole trace.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else str(error)
        raise TraceError(str(path), 0, f"cannot be read: {problem}") from None
    return parse_trace(data, str(path), allow_partial=allow_partial)


def parse_trace(data: bytes, path: str, *, allow_partial: bool = False) -> Trace:
    """The trace in `data`; `path` is for messages.  Raises as :func:`read_trace` does."""
    if not data:
        raise TraceError(path, 0, "the file is empty")
    lines = data.split(b"\n")
    cut = lines.pop()  # what follows the last newline: nothing, if the last line is whole
    if cut and _whole(cut):
        lines.append(cut)  # only its newline is missing
        cut = b""
    if not lines:
        raise TraceError(path, 1, _foreign(cut) or "the file ends within the header")
    header = _header(path, lines[0])
    if len(lines) == 1:
        raise TraceError(path, 2, "the file ends before the initial state")
    state = _decode(path, 2, lines[1], State)
    verdict = None
    if lines[-1].startswith(_VERDICT):
        verdict = _decode(path, len(lines), lines[-1], Verdict)
    body = lines[2:] if verdict is None else lines[2:-1]
    events = tuple(_event(path, step, line) for step, line in enumerate(body))
    trace = Trace(path, header, state, events, verdict)
    _check_end(trace, cut, allow_partial=allow_partial)
    return trace


def _header(path: str, line: bytes) -> Header:
    if foreign := _foreign(line):
        raise TraceError(path, 1, foreign)
    envelope = _decode(path, 1, line, _Envelope)
    if envelope.version != VERSION:
        raise TraceError(
            path, 1, f"trace version {envelope.version}; this rcusim reads version {VERSION}"
        )
    return _decode(path, 1, line, Header)


def _foreign(line: bytes) -> str:
    """Why the first line is not that of a trace at all; empty if it may be."""
    if line.startswith(_HEADER) or _HEADER.startswith(line):
        return ""
    kind = "text" if _text(line) else "binary data"
    return f"not an rcusim trace: {kind} that does not begin with a {FORMAT} header"


def _text(line: bytes) -> bool:
    try:
        return all(char.isprintable() or char in "\t\r" for char in line.decode())
    except UnicodeDecodeError:
        return False


def _whole(line: bytes) -> bool:
    """Whether a line is complete JSON: no beginning of an object is."""
    try:
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return False
    return True


def _decode(path: str, number: int, line: bytes, kind: type[L]) -> L:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.ValidationError as error:
        problem = f"not a valid {_NAMES[kind]}: {error}"
    except UnicodeDecodeError:
        problem = "damaged: not UTF-8"
    except RecursionError:
        problem = "damaged: nested too deeply"
    except msgspec.DecodeError as error:
        problem = f"damaged: {error}"
    raise TraceError(path, number, plain(problem))


_NAMES: Final[dict[type, str]] = {
    _Envelope: "header",
    Header: "header",
    State: "initial state",
    EventRecord: "event",
    Verdict: "verdict",
}


def _event(path: str, step: int, line: bytes) -> EventRecord:
    """The event on line `step` + 3, whose step it must be, with a choice that makes sense."""
    number = step + 3
    if line.startswith(_VERDICT):
        raise TraceError(path, number, "lines follow the verdict")
    event = _decode(path, number, line, EventRecord)
    if event.step != step:
        raise TraceError(path, number, f"step {event.step} where step {step} was expected")
    choice = event.choice
    if choice is UNSET:
        sensible = not event.enabled and event.of <= 1
    elif event.of:
        sensible = not event.enabled and 0 <= choice < event.of
    else:
        sensible = 0 <= choice < len(event.enabled) and event.enabled[choice] == event.thread
    if not sensible:
        raise TraceError(path, number, f"step {step} has an impossible choice")
    return event


def _check_end(trace: Trace, cut: bytes, *, allow_partial: bool) -> None:
    """Whether the end of the file is that of a whole trace, or of a partial one if allowed."""
    verdict, last = trace.verdict, trace.last_line
    if verdict is None:
        if not allow_partial:
            after = f"line {last + 1} is cut off" if cut else f"it ends with line {last}"
            raise TraceError(
                trace.path, last, f"no verdict: {after}, the run was killed or the file truncated"
            )
    elif cut:
        raise TraceError(trace.path, last + 1, "lines follow the verdict")
    elif verdict.steps != len(trace.events):
        raise TraceError(
            trace.path, last, f"the verdict is of {verdict.steps} steps, not {len(trace.events)}"
        )

"""The outcome of a matrix as a table: for a terminal, as plain text and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from rich.table import Table
from rich.text import Text

from sim.errors import UsageError
from sim.matrix import BROKEN, REFUSED, Outcome, Row, Seen

BEGIN: Final = "<!-- table: rcusim matrix -->"
END: Final = "<!-- end of table -->"
TITLES: Final = {"random": "random walk", "pct": "PCT"}
HEADER: Final = (
    "workload",
    "parameters",
    "kernel",
    "expected",
    "random walk",
    "s",
    "PCT",
    "s",
    "as expected",
)


def row_title(row: Row) -> str:
    """A row on one line: ``3 inner_map_replace outer=hash 5.10``."""
    return " ".join(filter(None, (str(row.number), row.workload, _params(row), _kernel(row))))


def text_table(outcomes: Sequence[Outcome]) -> str:
    """Aligned columns, for a pipe or a file."""
    rows = [HEADER, *map(_cells, outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def rich_table(outcomes: Sequence[Outcome]) -> Table:
    """For a terminal: what is not as expected stands out."""
    table = Table()
    for title in HEADER:
        table.add_column(title, justify="right" if title == "s" else "left", overflow="fold")
    for outcome in outcomes:
        style = "bold red" if outcome.unexpected else ""
        table.add_row(*map(Text, _cells(outcome)), style=style)
    return table


def markdown_table(outcomes: Sequence[Outcome]) -> str:
    """The table in Markdown; what was found, and what is not as expected, is bold."""
    lines = [_line(HEADER), _line("--:" if title == "s" else "---" for title in HEADER)]
    lines += [_line(_cells(outcome, bold="**")) for outcome in outcomes]
    return "\n".join(lines)


def conclusion(outcomes: Sequence[Outcome], planned: int) -> str:
    """What the rows come to, in one line."""
    wrong = [str(outcome.row.number) for outcome in outcomes if outcome.unexpected]
    done = f"{planned} row{'s' if planned != 1 else ''}"
    if len(outcomes) < planned:
        done = f"{len(outcomes)} of {done} done"
    if not wrong:
        return f"{done}, all as expected" if outcomes else done
    return f"{done}, {len(wrong)} not as expected: row {', '.join(wrong)}"


def check_page(path: Path) -> None:
    """Raise UsageError unless `path` is a page with the two markers around its table."""
    _around(path)


def write_page(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Put the table between the page's markers.  UsageError if that cannot be."""
    before, after = _around(path)
    try:
        path.write_text(f"{before}{BEGIN}\n{markdown_table(outcomes)}\n{END}{after}", "utf-8")
    except OSError as error:
        raise UsageError(f"--write {path}: {error.strerror}") from None


def _around(path: Path) -> tuple[str, str]:
    """What stands before and after the table."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"--write {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--write {path}: {error}") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"--write {path}: it needs the lines {BEGIN} and {END}")
    return before, after


# -- cells ---------------------------------------------------------------------------------------


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cells(outcome: Outcome, bold: str = "") -> tuple[str, ...]:
    row = outcome.row
    wrong = ", ".join(TITLES[name] for name in outcome.unexpected)
    seen = [
        cell
        for name in TITLES
        for cell in (_seen(outcome.seen[name], bold), f"{outcome.seen[name].seconds:.2f}")
    ]
    said = f"{bold}NO: {wrong}{bold}" if wrong else "yes"
    return (row.workload, _params(row), _kernel(row), _expected(row), *seen, said)


def _params(row: Row) -> str:
    return " ".join(f"{name}={value}" for name, value in row.params.items())


def _kernel(row: Row) -> str:
    added = [f"+{name}" for name in row.added]
    return " ".join(filter(None, [row.kernel, *added, *(f"-{name}" for name in row.removed)]))


def _expected(row: Row) -> str:
    if not row.expect:
        return "nothing"
    by = [TITLES[name] for name in TITLES if name not in row.not_by] if row.not_by else []
    return " or ".join(row.expect) + (f" by {', '.join(by)}" if by else "")


def _seen(seen: Seen, bold: str) -> str:
    if seen.kinds in ((REFUSED,), (BROKEN,)):
        shown = " ".join(seen.message.split())
        if seen.kinds == (REFUSED,):  # by what, is in the row
            shown = shown.partition(": ")[2] or shown
        return f"{seen.kinds[0]}: {shown}"
    found = f"{bold}{', '.join(seen.kinds)}{bold}" if seen.kinds else "nothing"
    races = f", {seen.races} data race{'s' if seen.races != 1 else ''} by design"
    return f"{found} ({seen.executions}){races if seen.races and not seen.kinds else ''}"

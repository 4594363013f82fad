"""What modelled code itself says is wrong."""

import pytest

from sim.macros import READ_ONCE, note
from tests.sim.detectors.support import World, explore, text, threads


async def parse(world: World) -> None:
    raise TypeError(f"unsupported: {world} and more\nof it")


async def crashes(world: World) -> None:
    await READ_ONCE(world.board.x)
    await parse(world)


def test_an_exception_is_a_finding_without_addresses_and_line_numbers() -> None:
    report = explore(threads(crashes))

    assert report.titles == [
        "BUG: unhandled exception in thread crashes: TypeError: unsupported:"
        f" <{World.__module__}.World> and more"
    ]
    assert text(report.only).splitlines() == [
        "Call Trace (module and function):",
        f" {__name__} parse",
        f" {__name__} crashes",
    ]
    assert report.only.fatal


def test_an_assertion_without_a_message() -> None:
    async def asserts(world: World) -> None:
        del world
        raise AssertionError

    assert explore(threads(asserts)).titles == [
        "BUG: unhandled exception in thread asserts: AssertionError"
    ]


@pytest.mark.parametrize(
    ("name", "value", "title", "fatal"),
    [
        ("BUG", "slot is not NULL", "kernel BUG in says!", True),
        ("WARN", "not attached", "WARNING: not attached in says", False),
        ("WARN", None, "WARNING: WARN_ON in says", False),
        ("violated", "x stays 0", "BUG: invariant violated: x stays 0", False),
        ("violated", None, "BUG: invariant violated: says", False),
    ],
)
def test_notes(name: str, value: str | None, title: str, fatal: bool) -> None:
    async def says(world: World) -> None:
        del world
        await note(name, value)

    report = explore(threads(says))

    assert report.titles == [title]
    assert report.only.fatal is fatal
    assert (value or "") in text(report.only)
    assert text(report.only).splitlines()[-2:] == ["Call Trace:", " says"]


def test_other_notes_and_returning_are_silent() -> None:
    async def says(world: World) -> int:
        del world
        await note("might_sleep")
        await note("outcome", "BUG")
        return 1

    assert explore(threads(says)).titles == []  # type: ignore[arg-type]  # its value is dropped

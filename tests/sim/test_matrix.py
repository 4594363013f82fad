"""`rcusim matrix`: a table is read, searched, and held against what it expects."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sim.errors import UsageError
from sim.matrix import Row, read_matrix, search, select
from sim.matrix_table import BEGIN, END, conclusion, markdown_table, text_table

RCUSIM = Path(sys.executable).parent / "rcusim"
WORKLOAD = '''"""Is it misused?"""

from sim.cells import Cell, Struct, cell
from sim.errors import UsageError
from sim.macros import alloc, free, join, load
from sim.memory import Memory
from sim.threads import spawn
from sim.workload import workload


class Box(Struct):
    value: Cell[int] = cell(0)


async def user(box):
    await load(box.value)


async def owner(box, wrong):
    if wrong:
        await free(box)


@workload()
async def boxes(memory: Memory, wrong: bool = True, refuses: bool = False) -> None:
    if refuses:
        raise UsageError("not here: no boxes")
    box = await alloc(Box)
    threads = [await spawn(user, box, name="a"), await spawn(owner, box, wrong, name="b")]
    for thread in threads:
        await join(thread)
    if not wrong:
        await free(box)
'''
AS_EXPECTED = """
[[row]]
workload = "boxes.py"
expect = ["double-free", "use-after-free"]
[[row]]
workload = "boxes.py"
params = { wrong = false }
expect = []
executions = 20
fast = true
[[row]]
workload = "boxes.py"
params = { refuses = true }
expect = "refused"
"""
NOT_AS_EXPECTED = """
[[row]]
workload = "boxes.py"
expect = []
[[row]]
workload = "boxes.py"
params = { wrong = false }
expect = ["use-after-free"]
executions = 20
[[row]]
workload = "boxes.py"
params = { refuses = true }
expect = []
[[row]]
workload = "boxes.py"
params = { wrong = false }
expect = "refused"
executions = 20
[[row]]
workload = "boxes.py"
expect = ["use-after-free"]
"""


def matrix(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(RCUSIM), "matrix", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        check=False,
    )


def rows_of(folder: Path, text: str) -> list[Row]:
    (folder / "t.toml").write_text(text)
    return read_matrix(folder / "t.toml")


def without_times(value: str) -> str:
    return re.sub(r" +\d+\.\d\d(?=\s)", " T", value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the table is not, so that its files are found beside it."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "boxes.py").write_text(WORKLOAD)
    (tmp_path / "tables" / "good.toml").write_text(AS_EXPECTED)
    (tmp_path / "tables" / "bad.toml").write_text(NOT_AS_EXPECTED)
    return tmp_path


# -- the table that comes with rcusim --------------------------------------------------------------


def test_the_fast_rows_of_the_package_are_as_expected(tmp_path: Path) -> None:
    done = matrix("--fast", cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as expected" in done.stdout


def test_the_page_has_the_rows_of_the_package() -> None:
    page = (Path(__file__).parents[2] / "docs" / "matrix.md").read_text()
    table = page.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    rows = read_matrix()

    assert len(table) == len(rows)
    for line, row in zip(table, rows, strict=True):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells[0] == row.workload
        changes = [f"+{name}" for name in row.added] + [f"-{name}" for name in row.removed]
        assert cells[2].split() == [row.kernel, *changes]
        assert cells[-1] == "yes"


# -- the outcome and its exit code -----------------------------------------------------------------


def test_as_expected_exits_0(folder: Path) -> None:
    done = matrix("tables/good.toml", cwd=folder)
    lines = without_times(done.stdout).splitlines()

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.split(r"\s{2,}", lines[0])[:2] == ["workload", "parameters"]
    assert all(line.endswith("  yes") for line in lines[1:4])
    assert "refused: no boxes" in lines[3]
    assert lines[-1] == "3 rows, all as expected"


def test_what_is_not_as_expected_is_marked_and_exits_1(folder: Path) -> None:
    done = matrix("tables/bad.toml", cwd=folder)
    lines = done.stdout.splitlines()

    assert done.returncode == 1, done.stderr
    assert all(line.endswith("  NO: random walk, PCT") for line in lines[1:5])
    assert lines[5].endswith("  yes")
    assert lines[-1] == "5 rows, 4 not as expected: row 1, 2, 3, 4"


def test_json_has_it_all(folder: Path) -> None:
    done = matrix("tables/bad.toml", "--json", "--seed", "3", cwd=folder)
    told = json.loads(done.stdout)

    assert done.returncode == 1
    assert told["seed"] == 3
    assert [row["as_expected"] for row in told["rows"]] == [False] * 4 + [True]
    assert told["rows"][4]["expect"] == ["use-after-free"]
    assert told["rows"][4]["seen"]["pct"]["kinds"] == ["use-after-free"]
    assert told["rows"][1]["seen"]["random"]["executions"] == 20
    assert told["rows"][2]["seen"]["random"]["kinds"] == ["refused"]
    assert told["rows"][2]["seen"]["random"]["message"] == "not here: no boxes"


def test_everything_but_the_seconds_is_the_same_again(folder: Path) -> None:
    def run() -> Any:
        told = json.loads(matrix("tables/bad.toml", "--json", cwd=folder).stdout)
        for row in told["rows"]:
            for seen in row["seen"].values():
                del seen["seconds"]
        return told

    assert run() == run()


def test_max_executions_overrides_the_rows(folder: Path) -> None:
    done = matrix("tables/good.toml", "--fast", "--max-executions", "7", "--json", cwd=folder)
    [row] = json.loads(done.stdout)["rows"]

    assert row["row"] == 2
    assert [seen["executions"] for seen in row["seen"].values()] == [7, 7]


def test_a_strategy_that_needs_luck_may_find_nothing_but_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "boxes.py").write_text(WORKLOAD)
    row = 'workload = "boxes.py"\nnot_by = ["random"]\nexecutions = 5\n'
    nothing, other, found = rows_of(
        tmp_path,
        f'[[row]]\n{row}expect = ["use-after-free"]\nparams = {{ wrong = false }}\n'
        f'[[row]]\n{row}expect = ["deadlock"]\n[[row]]\n{row}expect = ["use-after-free"]\n',
    )

    assert search(nothing).unexpected == ("pct",)
    assert search(other).unexpected == ("random", "pct")
    assert search(found).unexpected == ()


def test_a_broken_workload_is_marked_and_the_table_goes_on(folder: Path) -> None:
    (folder / "tables" / "broken.py").write_text(
        WORKLOAD.replace("box = await alloc(Box)", "box = await alloc(Box)\n    load(box.value)")
    )
    broken = '[[row]]\nworkload = "broken.py"\nexpect = []\n'
    (folder / "tables" / "broken.toml").write_text(broken + AS_EXPECTED)

    done = matrix("tables/broken.toml", cwd=folder)

    assert done.returncode == 1, done.stderr
    assert "error: " in done.stdout.splitlines()[1]
    assert "write `await load(...)`" in done.stdout
    assert done.stdout.endswith("4 rows, 1 not as expected: row 1\n")


def test_ctrl_c_prints_what_is_done_and_exits_3(folder: Path) -> None:
    (folder / "tables" / "endless.py").write_text(
        WORKLOAD.replace("wrong: bool = True", "wrong: bool = False").replace(
            "async def user(box):", 'async def user(box):\n    open("begun", "w").close()'
        )
    )
    endless = '[[row]]\nworkload = "endless.py"\nexpect = []\nexecutions = 1000000\n'
    (folder / "tables" / "long.toml").write_text(AS_EXPECTED + endless)
    page = folder / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    command = [str(RCUSIM), "matrix", "tables/long.toml", "--write", "page.md"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (folder / "begun").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)

    assert process.returncode == 3
    assert out.endswith("3 of 4 rows done, all as expected\n")
    assert len(out.splitlines()) == 6
    assert err == "rcusim: interrupted\n"
    assert page.read_text() == f"{BEGIN}\n{END}\n"


def test_a_terminal_gets_a_drawn_table(folder: Path) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "150", "TERM": "xterm"}
    env.pop("NO_COLOR", None)
    command = [str(RCUSIM), "matrix", "tables/bad.toml"]
    with subprocess.Popen(command, cwd=folder, env=env, stdout=theirs) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # the terminal's end, on Linux
            while part := os.read(ours, 10_000):
                text += part
    os.close(ours)

    assert process.returncode == 1
    assert "┏━" in text.decode()
    assert "\x1b[1;31m" in text.decode()


# -- the Markdown page -----------------------------------------------------------------------------


def test_the_page_is_written_between_the_markers_and_again_the_same(folder: Path) -> None:
    page = folder / "page.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    written = []
    for _ in range(2):
        assert matrix("tables/bad.toml", "--write", "page.md", cwd=folder).returncode == 1
        written.append(page.read_text())

    assert written[0].startswith(f"# Before\n\n{BEGIN}\n| workload | parameters | kernel |")
    assert written[0].endswith(f" |\n{END}\n\nAfter.\n")
    assert "old" not in written[0]
    assert "| **use-after-free** (" in written[0]
    assert "| **NO: random walk, PCT** |" in written[0]
    assert without_times(written[0]) == without_times(written[1])


@pytest.mark.parametrize(
    ("page", "args", "problem"),
    [
        (None, (), "page.md: No such file"),
        (f"{BEGIN}\n", (), "it needs the lines"),
        (f"{END}\n{BEGIN}\n", (), "it needs the lines"),
        (f"{BEGIN}\n{END}\n", ("--fast",), "--write is for the whole table"),
        (f"{BEGIN}\n{END}\n", ("--only", "boxes.py"), "--write is for the whole table"),
    ],
)
def test_a_page_that_cannot_be_written_exits_2(
    folder: Path, page: str | None, args: tuple[str, ...], problem: str
) -> None:
    if page is not None:
        (folder / "page.md").write_text(page)

    done = matrix("tables/good.toml", "--write", "page.md", *args, cwd=folder)

    assert done.returncode == 2
    assert problem in done.stderr
    assert done.stdout == ""


def test_a_bar_does_not_end_a_cell(folder: Path) -> None:
    [row, *_] = read_matrix(folder / "tables" / "good.toml")
    odd = search(Row(**{**vars(row), "params": {"a": "1|2"}}))

    assert "| a=1\\|2 |" in markdown_table([odd])
    assert "  a=1|2  " in text_table([odd])
    assert conclusion([odd], 1) == "1 row, all as expected"


# -- tables that are wrong -------------------------------------------------------------------------

COUNTER = '[[row]]\nworkload = "counter"\nexpect = []\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[row]\n", "line 1"),
        ("row = 3", "no rows"),
        ("row = []", "no rows"),
        ("row = [3]", "row 1: 3 is no table"),
        ("", "no rows"),
        ("x = 1\n" + COUNTER, "unknown key 'x'"),
        (COUNTER + "kernal = '5.10'", "row 1: unknown key 'kernal'; known: workload, params"),
        (COUNTER + COUNTER.replace("counter", "countr"), "row 2: no workload is called 'countr'"),
        ('[[row]]\nworkload = "counter"', "row 1: expect is missing"),
        ("[[row]]\nexpect = []", "row 1: workload is missing"),
        ("[[row]]\nexpect = []\nworkload = ''", "row 1: no workload is called ''"),
        ("[[row]]\nexpect = []\nworkload = 'no.py'", "row 1: no workload file"),
        ("[[row]]\nexpect = []\nworkload = 1", "row 1: workload = 1: text is needed"),
        (COUNTER + "kernel = 5.10", "row 1: kernel = 5.1: text is needed, in quotes"),
        (COUNTER + "kernel = '5.10'", "row 1: --kernel, --with and --without"),
        (COUNTER + "with = 'x'", "row 1: with = 'x': a list"),
        (COUNTER + "without = [1]", "row 1: without = [1]: a list"),
        (COUNTER + "params = 1", "row 1: params = 1: a table"),
        (COUNTER + "params = { n = 1.5 }", "row 1: params.n = 1.5"),
        (COUNTER + "params = { n = 'x' }", "row 1: --param n=x: a whole number"),
        (COUNTER + "params = { n = true }", "row 1: --param n=true: a whole number"),
        (COUNTER + "params = { m = 1 }", "row 1: counter has no parameter 'm'"),
        (COUNTER + "fast = 1", "row 1: fast = 1: write true or false"),
        (COUNTER + "executions = 0", "row 1: executions = 0"),
        (COUNTER + "executions = true", "row 1: executions = True"),
        (COUNTER + "not_by = ['dfs']", "row 1: not_by: 'dfs' is no strategy"),
        (COUNTER + "not_by = ['pct']", "row 1: not_by is for rows that expect a finding"),
        (
            "[[row]]\nworkload = 'counter'\nexpect = ['x']\nnot_by = ['pct', 'random']",
            "row 1: not_by: at least one",
        ),
        ("[[row]]\nworkload = 'counter'\nexpect = 'x'", "row 1: expect = 'x': write a list"),
        ("[[row]]\nworkload = 'counter'\nexpect = 1", "row 1: expect = 1: a list"),
        ("[[row]]\nworkload = 'inner_map_replace'\nexpect = []\nkernel = '1.0'", "row 1: kernel"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=re.escape(problem)) as refused:
        rows_of(tmp_path, text)

    assert str(refused.value).startswith(str(tmp_path / "t.toml"))


def test_a_wrong_table_exits_2_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'x = "\xe9"')
    (tmp_path / "wrong.toml").write_text(COUNTER + "colour = 1\n")
    for name in ("latin.toml", "wrong.toml", "missing.toml", "."):
        done = matrix(name, cwd=tmp_path)

        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"rcusim: {name}: ")
        assert len(done.stderr.splitlines()) == 1
    assert "rcusim: wrong.toml: row 1: unknown key" in matrix("wrong.toml", cwd=tmp_path).stderr


def test_rows_are_selected_by_workload_and_speed(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, COUNTER + COUNTER + "fast = true\n")

    assert [row.number for row in select(rows)] == [1, 2]
    assert [row.number for row in select(rows, "counter")] == [1, 2]
    assert [row.number for row in select(rows, fast=True)] == [2]
    with pytest.raises(UsageError, match="--only x: no row has that workload; rows have: counter"):
        select(rows, "x")
    with pytest.raises(UsageError, match="--fast"):
        select(rows[:1], fast=True)

"""The command as a user runs it: in a process of its own, by its output and exit code."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sim.native import compiled

RCUSIM = Path(sys.executable).parent / "rcusim"
RACY = '''"""Is a flag enough to hand over an object?"""

from sim.cells import Cell, Struct, cell
from sim.macros import WRITE_ONCE, alloc, free, join, load
from sim.memory import Memory
from sim.threads import spawn
from sim.workload import workload


class Box(Struct):
    value: Cell[int] = cell(0)


async def user(box):
    await load(box.value)


async def owner(box):
    await free(box)


@workload()
async def racy(memory: Memory) -> None:
    box = await alloc(Box)
    threads = [await spawn(user, box, name="user"), await spawn(owner, box, name="owner")]
    for thread in threads:
        await join(thread)
'''


def rcusim(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # our own command
        [str(RCUSIM), *args],
        capture_output=True,
        text=True,
        cwd=cwd or tempfile.mkdtemp(prefix="rcusim-test-"),
        env={**os.environ, **env},
        check=False,
    )


def test_findings_that_differ_in_their_threads_have_a_trace_each(tmp_path: Path) -> None:
    options = ("--kernel", "5.10", "--keep-going", "--json", "--out", str(tmp_path))
    result = json.loads(rcusim("explore", "inner_map_replace", *options).stdout)
    traces = {finding["trace"] for finding in result["findings"]}

    assert len(traces) == len(result["findings"]) == 2
    assert {str(path) for path in tmp_path.glob("*.jsonl")} == traces


def test_the_version_says_whether_the_engine_is_compiled() -> None:
    said = rcusim("--version", RCUSIM_PURE="1")

    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith("rcusim 0.")
    assert said.stdout.endswith(" (engine as Python, which is slower: see rcusim-compile)\n")
    if compiled():
        assert rcusim("--version").stdout.endswith(" (engine compiled)\n")


@pytest.fixture
def racy(tmp_path: Path) -> Path:
    path = tmp_path / "racy.py"
    path.write_text(RACY)
    return path


def test_list_names_every_workload_and_its_parameters() -> None:
    listed = json.loads(rcusim("list", "--json").stdout)

    assert {"name": "counter", "params": {"n": 2, "k": 1}}.items() <= next(
        row for row in listed if row["name"] == "counter"
    ).items()


def test_a_proof_exits_0_and_says_what_was_proved() -> None:
    done = rcusim("explore", "counter", "--strategy", "dfs")

    assert done.returncode == 0
    assert "PROVED: counter" in done.stdout
    assert "all interleavings explored" in done.stdout
    assert "n=2 k=1" in done.stdout


def test_a_sample_exits_3() -> None:
    done = rcusim("explore", "counter", "--strategy", "random", "--max-executions", "10")

    assert done.returncode == 3
    assert "this is no proof" in done.stdout


def test_json_is_one_object_with_the_documented_keys() -> None:
    options = ("--strategy", "random", "--max-executions", "10", "--seed", "4")
    done = rcusim("explore", "counter", "--json", *options)
    result = json.loads(done.stdout)

    assert result["verdict"] == "inconclusive"
    assert result["seed"] == 4
    assert result["executions"] == 10
    wanted = {"verdict", "workload", "kernel", "strategy", "seed", "executions", "steps"}
    assert wanted | {"elapsed_s", "findings"} <= result.keys()


def test_a_finding_exits_1_and_its_trace_replays_in_both_hosts(racy: Path, tmp_path: Path) -> None:
    out = tmp_path / "traces"
    found = rcusim("explore", str(racy), "--out", str(out), "--json")
    result = json.loads(found.stdout)

    assert found.returncode == 1
    assert result["verdict"] == "finding"
    assert result["findings"][0]["kind"] == "use-after-free"
    assert result["findings"][0]["title"].startswith("BUG: KASAN: use-after-free in ")
    trace = result["findings"][0]["trace"]
    for host, seed in (("direct", "0"), ("trio", "1")):
        again = rcusim("replay", trace, "--host", host, cwd=tmp_path, PYTHONHASHSEED=seed)
        assert again.returncode == 0, again.stderr
        assert "byte for byte" in again.stdout
    shown = rcusim("show", trace)
    assert shown.returncode == 0
    assert "BUG: KASAN: use-after-free" in shown.stdout


def test_a_trace_of_an_edited_program_diverges_with_exit_4(racy: Path, tmp_path: Path) -> None:
    found = rcusim("explore", str(racy), "--out", str(tmp_path / "traces"), "--json")
    trace = json.loads(found.stdout)["findings"][0]["trace"]
    racy.write_text(RACY.replace("    await free(box)", "    await WRITE_ONCE(box.value, 1)"))

    again = rcusim("replay", trace, cwd=tmp_path)

    assert again.returncode == 4
    for word in ("diverged at step", "expected", "got", "enabled"):
        assert word in again.stdout


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "the run was killed or the file truncated"),
        (lambda text: text.replace('"version":1', '"version":7', 1), "trace version 7"),
        (lambda text: "hello\n" + text, "not an rcusim trace"),
        (lambda text: text.replace('{"step":3,', '{"step":3,,', 1), ":6: damaged"),
    ],
)
def test_a_damaged_trace_is_refused_with_its_line(
    damage: Callable[[str], str], says: str, tmp_path: Path
) -> None:
    golden = Path(__file__).parents[2] / "traces" / "inner-map-use-after-free-5.10.jsonl"
    path = tmp_path / "damaged.jsonl"
    path.write_text(damage(golden.read_text()))

    again = rcusim("replay", str(path))

    assert again.returncode == 2
    assert says in again.stderr
    assert again.stderr.count("\n") == 1


def test_options_come_from_the_environment_and_the_command_line_wins() -> None:
    options = ("explore", "counter", "--json", "--param", "k=2")
    seven = rcusim(*options, RCUSIM_MAX_EXECUTIONS="7")
    five = rcusim(*options, "--max-executions", "5", RCUSIM_MAX_EXECUTIONS="7")

    assert json.loads(seven.stdout)["executions"] == 7
    assert json.loads(five.stdout)["executions"] == 5


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["explore", "nope"], "no workload is called 'nope'"),
        (["explore", "nope.py"], "no workload file 'nope.py'"),
        (["explore", "no.such.module"], "no workload module"),
        (["explore", "counter", "--param", "z=1"], "has no parameter 'z'"),
        (["explore", "counter", "--param", "n"], "write it as name=value"),
        (["explore", "counter", "--param", "n=two"], "a whole number is needed"),
        (["explore", "counter", "--kernel", "5.10"], "runs on no kernel"),
        (["explore", "counter", "--strategy", "luck"], "choose dpor, random, pct or dfs"),
        (
            ["explore", "counter", "--strategy", "random", "--preemptions", "2"],
            "bounds --strategy dpor and dfs",
        ),
        (["explore", "counter", "--preemptions", "1", "--jobs", "2"], "leave out --preemptions"),
        (["explore", "counter", "--preemptions", "1", "--resume"], "leave out --preemptions"),
        (["explore", "counter", "--host", "moon"], "choose direct or trio"),
        (["explore", "counter", "--max-executions", "0"], "--max-executions"),
        (["explore"], "Missing argument"),
        (["explode"], "explode"),
        (["run", "counter", "--choices", "a,b"], "write numbers"),
        (["run", "counter", "--choices", "9"], "choice 0 is 9"),
        (["replay", "/nonexistent"], "cannot be read"),
        (["replay", "/bin/true"], "not an rcusim trace"),
        (["show", "/dev/null"], "the file is empty"),
    ],
)
def test_bad_input_is_one_clear_message_and_exit_2(args: list[str], says: str) -> None:
    done = rcusim(*args)

    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_workload_that_does_not_compile_is_bad_input(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    done = rcusim("explore", str(broken))

    assert done.returncode == 2
    assert "cannot be loaded: SyntaxError" in done.stderr


def test_ctrl_c_ends_with_a_verdict_of_what_was_done() -> None:
    process = subprocess.Popen(  # our own command
        [str(RCUSIM), "explore", "counter", "--param", "n=4", "--param", "k=3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    began = process.stdout.readline() + process.stdout.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert process.returncode == 3, err
    assert "strategy dpor" in began
    assert "Ctrl-C ended the search" in out
    assert "Traceback" not in err

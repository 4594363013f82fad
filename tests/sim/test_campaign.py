"""Killed at any moment and resumed, a search comes to the same verdict and the same totals."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from sim.cli import main; main()")  # ``rcusim`` of this tree
SAME = ("verdict", "executions", "steps", "blocked", "cut", "directed", "outcomes", "predicted")
COUNTER = ("counter", "--param", "n=2", "--param", "k=4")  # 3,334 executions
ENDLESS = ("lastzero", "--param", "n=20")  # takes minutes on the fastest machine


def begin(*args: str, cwd: Path, group: bool = False) -> subprocess.Popen[str]:
    """`group`: as from a terminal, where Ctrl-C reaches all processes."""
    return subprocess.Popen(
        [*COMMAND, "explore", "--strategy", "dpor", "--json", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=group,
    )


def explore(*args: str, cwd: Path, code: int | None = None) -> Any:
    process = begin(*args, cwd=cwd)
    out, err = process.communicate(timeout=120)
    if code is not None:
        assert process.returncode == code, err
    assert "Traceback" not in err
    return json.loads(out) if out else err


def totals(result: Any) -> Any:
    found = sorted((f["kind"], f["title"]) for f in result["findings"] + result["races"])
    return [result[name] for name in SAME], found


def campaign(out: Path) -> Path:
    [path] = out.glob(".rcusim/*.campaign")
    return path


def wait_for_campaign(cwd: Path, process: subprocess.Popen[str]) -> None:
    """Until the campaign of that run is there: on a busy machine it takes long to start."""
    for _ in range(600):
        if list(cwd.glob(".rcusim/*.campaign")) or process.poll() is not None:
            return
        time.sleep(0.1)


def kill_and_resume(args: tuple[str, ...], cwd: Path, seed: int, kills: int) -> Any:
    """The result of a run that was killed so often, at random moments."""
    random = Random(seed)
    resume: tuple[str, ...] = ()
    for _ in range(kills):
        process = begin(*args, *resume, cwd=cwd)
        time.sleep(random.uniform(0.2, 2.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if list(cwd.glob(".rcusim/*.campaign")):
            resume = ("--resume",)
            if "holds nothing yet" in str(
                explore(*args, "--resume", "--max-duration", "0", cwd=cwd)
            ):
                resume = ()
    return explore(*args, *resume, cwd=cwd)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize(
    "args",
    [
        ("lastzero", "--param", "n=10"),
        ("philosophers", "--keep-going"),
        ("inner_map_replace", "--kernel", "6.8"),
        ("inner_map_replace", "--kernel", "5.10"),
    ],
    ids="-".join,
)
def test_killed_at_random_moments(args: tuple[str, ...], jobs: str, tmp_path: Path) -> None:
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    plain.mkdir()
    killed.mkdir()
    expected = explore(*args, cwd=plain)

    result = kill_and_resume((*args, "--jobs", jobs), killed, seed=len(args), kills=4)

    if expected["verdict"] == "finding" and jobs != "1":
        assert result["verdict"] == "finding"
    else:
        assert totals(result) == totals(expected)


def test_killed_once(tmp_path: Path) -> None:
    result = kill_and_resume(COUNTER, tmp_path, seed=1, kills=1)

    assert (result["verdict"], result["executions"]) == ("proved", 3334)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_budget_that_ended_it_can_be_raised(jobs: str, tmp_path: Path) -> None:
    args = (*COUNTER, "--jobs", jobs)
    first = explore(*args, "--max-executions", "700", cwd=tmp_path, code=3)
    same = explore(*args, "--max-executions", "700", "--resume", cwd=tmp_path, code=3)
    second = explore(*args, "--max-executions", "900", "--resume", cwd=tmp_path, code=3)
    last = explore(*args, "--resume", cwd=tmp_path, code=0)

    assert [r["executions"] for r in (first, same, second, last)] == [700, 700, 900, 3334]
    assert first["elapsed_s"] < second["elapsed_s"] < last["elapsed_s"]


@pytest.mark.parametrize(("first", "second"), [("1", "2"), ("2", "1")])
def test_the_number_of_jobs_may_change(first: str, second: str, tmp_path: Path) -> None:
    explore(*COUNTER, "--max-executions", "900", "--jobs", first, cwd=tmp_path, code=3)
    last = explore(*COUNTER, "--resume", "--jobs", second, cwd=tmp_path, code=0)

    assert last["executions"] == 3334


def test_a_finished_campaign_reports_again(tmp_path: Path) -> None:
    args = ("philosophers", "--keep-going")
    first = explore(*args, cwd=tmp_path, code=1)
    again = explore(*args, "--resume", cwd=tmp_path, code=1)

    assert first["findings"]
    assert {**again, "elapsed_s": 0} == {**first, "elapsed_s": 0}


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    explore(*COUNTER, "--max-executions", "900", cwd=tmp_path, code=3)
    again = explore(*COUNTER, "--max-executions", "10", cwd=tmp_path, code=3)

    assert again["executions"] == 10


def test_ctrl_c_leaves_something_to_resume(tmp_path: Path) -> None:
    process = begin(*ENDLESS, cwd=tmp_path)
    wait_for_campaign(tmp_path, process)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    again = explore(*ENDLESS, "--resume", "--max-duration", "0", cwd=tmp_path, code=3)

    assert json.loads(out)["stopped"] == "Ctrl-C", err
    assert again["executions"] > 0


@pytest.mark.parametrize("delay", [0.0, 0.4, 1.0])
def test_ctrl_c_is_no_business_of_workers(delay: float, tmp_path: Path) -> None:
    process = begin(*ENDLESS, "--jobs", "2", cwd=tmp_path, group=True)
    wait_for_campaign(tmp_path, process)
    time.sleep(delay)  # while they start, and later
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert (err, process.returncode) in (("", 3), ("rcusim: interrupted\n", 3))
    assert not out or json.loads(out)["stopped"] == "Ctrl-C"


def test_nothing_to_resume(tmp_path: Path) -> None:
    explore(*COUNTER, "--max-executions", "10", cwd=tmp_path, code=3)
    other = explore("counter", "--param", "k=2", "--resume", cwd=tmp_path, code=2)
    none = explore("lastzero", "--resume", cwd=tmp_path, code=2)

    assert "no campaign of counter with n=2 k=2" in other
    assert str(campaign(tmp_path).name) in other
    assert "no campaign of lastzero" in none


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    explore(*COUNTER, "--max-executions", "10", cwd=tmp_path, code=3)
    path = campaign(tmp_path)
    path.unlink()
    path.mkdir()

    assert "is a directory" in explore(*COUNTER, cwd=tmp_path, code=2)
    assert "is a directory" in explore(*COUNTER, "--resume", cwd=tmp_path, code=2)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--max-steps", "99"), "begun with max-steps=20000, not 99"),
        (("--keep-going",), "begun with keep-going=False, not True"),
    ],
)
def test_other_options_are_refused(more: tuple[str, ...], says: str, tmp_path: Path) -> None:
    explore(*COUNTER, "--max-executions", "10", cwd=tmp_path, code=3)

    assert says in explore(*COUNTER, "--resume", *more, cwd=tmp_path, code=2)


def test_another_model_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "workloads" / "benchmarks" / "counter.py").read_text()
    (tmp_path / "mine.py").write_text(text)
    explore("mine.py", "--max-executions", "3", cwd=tmp_path, code=3)
    (tmp_path / "mine.py").write_text(text + "\n")

    told = explore("mine.py", "--resume", cwd=tmp_path, code=2)

    assert "the model or the workload has changed" in told


def test_a_damaged_file_is_refused_and_replaced(tmp_path: Path) -> None:
    explore(*COUNTER, "--max-executions", "10", cwd=tmp_path, code=3)
    path = campaign(tmp_path)
    whole = path.read_bytes()
    damaged = [b"hello", whole[: len(whole) // 2], b"", b"x" + whole[1:]]
    with sqlite3.connect(path) as file:
        file.execute("UPDATE campaign SET value = replace(value, '3', '4') WHERE name = 'state'")
    file.close()
    damaged.append(path.read_bytes())

    for content in damaged:
        path.write_bytes(content)
        told = explore(*COUNTER, "--resume", cwd=tmp_path, code=2)
        assert "damaged" in told or "holds nothing" in told
    path.write_bytes(b"hello")
    assert explore(*COUNTER, cwd=tmp_path, code=0)["executions"] == 3334


def test_two_runs_of_one_campaign_do_not_mix(tmp_path: Path) -> None:
    with begin(*ENDLESS, cwd=tmp_path) as process:
        try:
            wait_for_campaign(tmp_path, process)
            told = explore(*ENDLESS, cwd=tmp_path, code=2)
        finally:
            process.kill()

    assert "another run is using it" in told


@pytest.mark.parametrize("option", [("--resume",), ("--jobs", "2"), ("--cluster", "local")])
def test_only_complete_searches_can_be_cut(option: tuple[str, ...], tmp_path: Path) -> None:
    told = explore("counter", *option, "--strategy", "random", cwd=tmp_path, code=2)

    assert "--strategy dpor" in told

"""A search shared through Dask comes to the same totals; what is missing is named."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sim.errors import UsageError
from sim.pools import cluster

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from sim.cli import main; main()")  # ``rcusim`` of this tree
needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None,
    reason="Dask distributed is not installed: pip install 'rcusim[cluster]'",
)


def begin(*args: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "explore", "--strategy", "dpor", "--json", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def workers(pid: int) -> list[int]:
    """The processes that a process has started, and that run Python's `multiprocessing`."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    below = [int(child) for child in children.read_text().split()]
    tasks = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return [
        child
        for child in dict.fromkeys([*below, *tasks])
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    ]


@pytest.mark.slow
@needs_dask
def test_ctrl_c_is_no_business_of_workers(tmp_path: Path) -> None:
    search = ("lastzero", "--param", "n=17")
    with begin(*search, "--cluster", "local", "--jobs", "2", cwd=tmp_path) as process:
        deadline = time.monotonic() + 60
        while len(workers(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2)
        for pid in (process.pid, *workers(process.pid)):
            os.kill(pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)

    assert (err, process.returncode) == ("", 3)
    assert json.loads(out)["stopped"] == "Ctrl-C"


@pytest.mark.slow
@needs_dask
def test_a_local_cluster_that_loses_a_worker_loses_nothing(tmp_path: Path) -> None:
    search = ("lastzero", "--param", "n=15")  # seconds of work on the fastest machine
    killed: list[int] = []
    ends = time.monotonic() + 60
    with begin(*search, "--cluster", "local", "--jobs", "2", cwd=tmp_path) as process:
        try:
            while process.poll() is None and time.monotonic() < ends and not killed:
                time.sleep(0.2)
                if list(tmp_path.glob(".rcusim/*.campaign-wal")) and len(workers(process.pid)) >= 2:
                    time.sleep(1)
                    killed = workers(process.pid)[:1]
                    os.kill(killed[0], signal.SIGKILL)
            out, err = process.communicate(timeout=240)
        finally:
            process.kill()
    result = json.loads(out or "{}")

    assert killed, err
    assert process.returncode == 0, err
    assert (result["verdict"], result["executions"]) == ("proved", 147_456)


@pytest.mark.slow
@needs_dask
def test_a_scheduler_that_is_not_there(tmp_path: Path) -> None:
    process = begin("counter", "--cluster", "tcp://127.0.0.1:1", cwd=tmp_path)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 2, err
    assert "--cluster tcp://127.0.0.1:1" in err
    assert "Traceback" not in err


def test_without_dask_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)

    with pytest.raises(UsageError, match=r"pip install 'rcusim\[cluster\]'"):
        cluster("local", 2)

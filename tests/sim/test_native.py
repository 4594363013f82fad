"""The compiled engine: the same bytes and numbers as the Python one, and never a stale one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim import native

ROOT = Path(__file__).parents[2]
COMPILED = native.directory().is_dir()
WITHOUT = "the engine is not compiled here: `make native` does it where there is a C compiler"
SEARCHES = (
    ("counter", "--strategy", "dpor", "--param", "n=2", "--param", "k=3"),
    ("philosophers", "--strategy", "dpor", "--keep-going"),
    ("inner_map_replace", "--kernel", "6.8", "--strategy", "dpor"),
    ("inner_map_replace", "--kernel", "5.10", "--strategy", "random"),
    ("tailcall_load_window", "--kernel", "5.10", "--strategy", "pct"),
    ("lastzero", "--strategy", "dfs", "--param", "n=3"),
)


def python(code: str, *, pure: bool, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "RCUSIM_PURE"}
    if pure:
        env["RCUSIM_PURE"] = "1"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def search(arguments: tuple[str, ...], out: Path, *, pure: bool) -> tuple[dict[str, object], bytes]:
    """What a search says, without its times, and the bytes of the traces that it wrote."""
    argv = ["rcusim", "explore", *arguments, "--json", "--out", str(out)]
    done = python(f"import sys; sys.argv = {argv!r}; from sim.cli import main; main()", pure=pure)
    said = json.loads(done.stdout)
    del said["elapsed_s"]
    traces = sorted(out.glob("*.jsonl"))
    for found in said["findings"] + said["races"]:
        found["trace"] = Path(found["trace"]).name
    return said, b"".join(trace.read_bytes() for trace in traces)


def test_tests_run_the_python_engine() -> None:
    assert not native.compiled()


@pytest.mark.skipif(not COMPILED, reason=WITHOUT)
def test_the_compiled_engine_is_used_unless_it_is_not_wanted() -> None:
    code = "import sim.execution as e; print(e.__file__.endswith('.py'))"

    assert python(code, pure=False).stdout == "False\n"
    assert python(code, pure=True).stdout == "True\n"


@pytest.mark.skipif(not COMPILED, reason=WITHOUT)
@pytest.mark.parametrize("arguments", SEARCHES, ids=lambda arguments: arguments[0])
def test_both_engines_say_and_write_the_same(arguments: tuple[str, ...], tmp_path: Path) -> None:
    one = search(arguments, tmp_path / "python", pure=True)
    other = search(arguments, tmp_path / "compiled", pure=False)

    assert one == other


@pytest.mark.skipif(not COMPILED, reason=WITHOUT)
@pytest.mark.slow
def test_the_compiled_engine_replays_every_golden_trace() -> None:
    code = (
        "import sys, sim.cli, sim.native; assert sim.native.compiled(); sys.argv = "
        "['rcusim', 'replay', sys.argv[1]]; sim.cli.main()"
    )
    for trace in sorted((ROOT / "traces").rglob("*.jsonl")):
        done = python(f"import sys; sys.argv = ['', {str(trace)!r}]; {code}", pure=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_machine_code_of_other_sources_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = native.directory()
    copy = tmp_path / "sim"
    for module in native.MODULES:
        file = copy.joinpath(*module.split(".")[1:]).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(native._source(module).read_bytes())
    monkeypatch.setattr(native, "SIM", copy)

    assert native.directory().name == before.name
    with (copy / "ops.py").open("a") as file_:
        file_.write("# changed\n")
    assert native.directory().name != before.name


def test_without_a_compiler_it_says_so_and_is_no_error(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sim.native as n; os.environ['CC'] = '/nowhere/cc'; "
        f"n.BUILT = pathlib.Path({str(tmp_path / 'built')!r}); "
        "n.MODULES = ('sim.ops', 'sim.undo'); n.main()"
    )
    done = python(code, pure=True)

    assert done.returncode == 0
    assert "not compiled (" in done.stdout
    assert "/nowhere/cc" in done.stdout
    assert "it runs as Python, with the same results but more slowly" in done.stdout

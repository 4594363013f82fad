"""What `rcusim show --text` shows of a kernel: machine code, sites, and what they come to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim.errors import UsageError
from sim.listing import text_at
from sim.record import header_of, record
from sim.strategies.random_walk import RandomWalk
from sim.trace.format import Trace
from sim.trace.reader import read_trace
from sim.workload import find

ROOT = Path(__file__).parents[2]
TRACES = ROOT / "traces"
MAIN = "from sim.cli import main; main()"


def rcusim(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # this tree's command, wherever it is installed from
        [sys.executable, "-c", MAIN, *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=dict(os.environ),
        check=False,
    )


def listing(name: str, step: int | None = None) -> list[str]:
    lines, divergence = text_at(read_trace(TRACES / f"{name}.jsonl"), step)
    assert divergence is None
    return lines


def first(trace: Trace, op: str, label: str = "") -> int:
    return next(e.step for e in trace.events if e.op == op and label in str(e.label))


def run_of(
    tmp_path: Path, workload: str, version: str, until: str = "", **params: str
) -> list[str]:
    program = find(workload).prepare(params, version=version)
    header = header_of(program, "random", 0, 1)
    trace = record(program, RandomWalk(0), header, tmp_path / "run.jsonl")
    return text_at(trace, first(trace, until) if until else None)[0]


def test_each_image_reads_as_objdump_shows_it() -> None:
    lines = listing("tailcall-tree-5.10")

    assert lines[0].endswith("<bpf_prog_again>:")
    assert any(line.endswith("call   0xffffffffa0010100 <bpf_prog_again>") for line in lines)
    assert any("ja     0xffffffffa0010137 <bpf_prog_again+0x37>" in line for line in lines)


def test_the_state_of_a_tail_call_follows_the_patches() -> None:
    trace = read_trace(TRACES / "tailcall-install-swapped-5.10.jsonl")
    patch = first(trace, "text_poke int3", "tailcall_bypass")

    before, within, end = (
        [line for line in listing("tailcall-install-swapped-5.10", at) if "tail call 0" in line]
        for at in (patch - 1, patch, None)
    )

    assert before == ["  # tail call 0, bpf_array#main.1.ptrs[0]: state C"]
    assert within == ["  # tail call 0, bpf_array#main.1.ptrs[0]: state being patched"]
    assert end == within


def test_it_says_which_cpu_sees_something_else() -> None:
    trace = read_trace(TRACES / "tailcall-install-swapped-5.10.jsonl")
    patch = first(trace, "text_poke int3", "tailcall_bypass")

    seen = [line for line in listing("tailcall-install-swapped-5.10", patch + 1) if "sees" in line]

    assert [line.split()[2] for line in seen] == ["1", "2"]  # CPU 0 is synchronised
    assert all("sees jmp" in line and "at tailcall_bypass" in line for line in seen)


def test_there_is_one_site_before_the_rework(tmp_path: Path) -> None:
    lines = run_of(tmp_path, "tailcall_counter", "5.9", shape="chain")

    assert any(line.endswith("ptrs[0]: jumps") for line in lines)
    assert not any("tailcall_bypass" in line for line in lines)


def test_a_call_of_a_helper_has_its_name(tmp_path: Path) -> None:
    lines = run_of(tmp_path, "n3_map_of_sleeping_program", "5.10", until="fetch")

    assert any(line.endswith("call   <bpf_copy_from_user>") for line in lines)


def test_a_trampoline_shows_what_its_halves_call() -> None:
    lines = listing("trampoline-fexit-sleep-5.10")

    function, at = (
        next(i for i, line in enumerate(lines) if line.endswith(f"<{name}__x64_sys_getpgid>:"))
        for name in ("", "bpf_trampoline_")
    )
    assert "<bpf_trampoline___x64_sys_getpgid>  # fentry" in lines[function + 1]
    assert lines[at + 1].endswith("half 0, 1 arguments")
    assert lines[at + 2].endswith("<__x64_sys_getpgid+0x5>  # the function")
    assert lines[at + 3].endswith("<bpf_prog_plain>  # fexit")


def test_what_has_no_text_says_so(tmp_path: Path) -> None:
    program = find("counter").prepare({})
    header = header_of(program, "random", 0, 1)
    bare = record(program, RandomWalk(0), header, tmp_path / "run.jsonl")

    with pytest.raises(UsageError, match="counter runs on no model that has text"):
        text_at(bare, None)
    with pytest.raises(UsageError, match="no text at step 0"):
        listing("tailcall-tree-5.10", 0)
    with pytest.raises(UsageError, match=r"--at 99999: the trace ends with step"):
        listing("tailcall-tree-5.10", 99999)


def test_the_command() -> None:
    trace = str(TRACES / "tailcall-tree-5.10.jsonl")

    shown = rcusim("show", trace, "--text")
    as_json = rcusim("show", trace, "--text", "--at", "200", "--json")
    wrong = rcusim("show", trace, "--at", "200")

    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == listing("tailcall-tree-5.10")
    assert json.loads(as_json.stdout)["text"] == listing("tailcall-tree-5.10", 200)
    assert (wrong.returncode, wrong.stderr) == (2, "rcusim: --at says where to look with --text\n")

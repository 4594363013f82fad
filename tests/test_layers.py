"""The import contracts of pyproject.toml hold, and each of them can fail.

import-linter runs in a process of its own: it looks packages up by name, and here the names
`sim`, `kernel_model` and `workloads` are taken by the real ones.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACTS: list[str] = [contract["id"] for contract in CONFIG["contracts"]]

# Every module that a contract names, and the least that a subpackage needs.
MODULES = """
    sim.errors sim.ops sim.cells sim.events sim.macros sim.memory sim.clock sim.threads
    sim.strategies.dfs sim.detectors.leak sim.execution sim.hosts.direct sim.workload
    sim.trace.format sim.trace.replay sim.report.splat sim.explore sim.pytest_plugin sim.cli
    kernel_model.fixes kernel_model.linux.mutex kernel_model.rcu.tree kernel_model.x86.text
    kernel_model.bpf.core kernel_model.events.core kernel_model.checks kernel_model.kernel
    workloads.race
""".split()

# contract, the imports ("importer > imported") that break it
VIOLATIONS = [
    ("packages", "sim.cells > kernel_model.fixes"),
    ("packages", "sim.cli > workloads.race"),
    ("packages", "kernel_model.bpf.core > workloads.race"),
    ("sim-layers", "sim.ops > sim.cells"),
    ("sim-layers", "sim.cells > sim.macros"),
    ("sim-layers", "sim.execution > sim.trace.format"),
    ("sim-layers", "sim.trace.format > sim.explore"),
    ("sim-layers", "sim.detectors.leak > sim.strategies.dfs"),
    ("sim-layers", "sim.unplaced > sim.errors"),
    ("sim-acyclic", "sim.memory > sim.threads, sim.threads > sim.memory"),
    ("observers", "sim.strategies.dfs > sim.execution"),
    ("observers", "sim.detectors.leak > sim.memory"),
    ("report-needs-only-a-trace", "sim.report.splat > sim.execution"),
    ("report-needs-only-a-trace", "sim.trace.format > sim.workload"),
    ("kernel-model-layers", "kernel_model.linux.mutex > kernel_model.rcu.tree"),
    ("kernel-model-layers", "kernel_model.rcu.tree > kernel_model.bpf.core"),
    ("kernel-model-layers", "kernel_model.x86.text > kernel_model.rcu.tree"),
    ("kernel-model-layers", "kernel_model.unplaced > kernel_model.fixes"),
    ("model-knows-no-runner", "kernel_model.kernel > sim.explore"),
    ("model-knows-no-runner", "kernel_model.bpf.core > sim.strategies.dfs"),
    ("model-calls-no-detector", "kernel_model.bpf.core > sim.detectors.leak"),
    ("model-calls-no-detector", "kernel_model.linux.mutex > kernel_model.checks"),
]


def lint(folder: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    """Hold the packages below `folder` against the contracts (none named: against all)."""
    command = [str(LINT_IMPORTS), "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for contract in contracts:
        command += ["--contract", contract]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def module_file(folder: Path, module: str) -> Path:
    """The file of `module`, its packages made."""
    *packages, name = module.split(".")
    for package in packages:
        folder /= package
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
    return folder / f"{name}.py"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The three packages with all their modules, none of which imports anything."""
    for module in MODULES:
        module_file(tmp_path, module).touch()
    return tmp_path


def test_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, f"an import goes the wrong way:\n{done.stdout}{done.stderr}"


def test_contracts_hold_without_imports(project: Path) -> None:
    """So what test_violation_is_found sees is the import that it adds."""
    done = lint(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken" in done.stdout


@pytest.mark.slow  # half a second each, and only a change of a contract can break them
@pytest.mark.parametrize(("contract", "imports"), VIOLATIONS)
def test_violation_is_found(project: Path, contract: str, imports: str) -> None:
    for line in imports.split(", "):
        importer, imported = line.split(" > ")
        module_file(project, importer).write_text(f"import {imported}\n")
    done = lint(project, contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 kept, 1 broken" in done.stdout


def test_annotations_may_name_what_lies_above(project: Path) -> None:
    module_file(project, "kernel_model.linux.mutex").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from kernel_model.kernel import Kernel\n"
    )
    done = lint(project)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_contract_is_broken_once() -> None:
    untested = sorted(set(CONTRACTS) - {contract for contract, _ in VIOLATIONS})
    assert not untested, f"no entry in VIOLATIONS shows that these can fail: {untested}"

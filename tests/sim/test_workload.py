"""Workloads are found, their parameters parsed, their programs rebuilt from a trace's header."""

from pathlib import Path
from typing import Literal

import pytest

from sim.errors import MisuseError, UsageError
from sim.memory import Memory
from sim.workload import find, known, workload


@workload()
async def sample(
    memory: Memory, *, n: int = 2, fast: bool = False, how: Literal["a", "b"] = "a"
) -> None:
    del memory, n, fast, how


def test_parameters_are_parsed_by_the_type_of_their_default() -> None:
    program = sample.prepare({"n": "0x10", "fast": "yes", "how": "b"})

    assert dict(program.params) == {"n": 16, "fast": True, "how": "b"}


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"m": "1"}, "sample has no parameter 'm'; it has: n=2, fast=False, how=a"),
        ({"n": "many"}, "a whole number is needed"),
        ({"n": "-1"}, "a number of 0 or more is needed"),
        ({"fast": "perhaps"}, "say true or false"),
        ({"how": "c"}, "choose one of a, b"),
    ],
)
def test_a_wrong_parameter_is_named(params: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        sample.prepare(params)


def test_a_parameter_without_a_default_is_misuse() -> None:
    async def incomplete(memory: Memory, n: int) -> None:
        del memory, n

    with pytest.raises(MisuseError, match="give 'n' a default value"):
        workload()(incomplete)


def test_a_program_is_rebuilt_from_its_own_description() -> None:
    program = sample.prepare({"n": "3"})
    again = sample.restore(program.params, program.machine.environment)

    assert again.params == program.params
    assert again.digest == program.digest


def test_every_known_workload_asks_a_question() -> None:
    for made in known().values():
        assert made.summary.endswith("?"), made.name
        for word in ("Covers:", "Scenario:", "Expect:"):
            assert word in made.doc, made.name


def test_a_workload_is_found_by_name_file_and_module() -> None:
    module = "workloads.benchmarks.counter"
    path = Path(__file__).parents[2] / "workloads" / "benchmarks" / "counter.py"

    assert find("counter").name == find(module).name == find(str(path)).name == "counter"


def test_the_digest_follows_the_source(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "workloads" / "benchmarks" / "counter.py").read_text()
    path = tmp_path / "digested.py"
    path.write_text(text)
    before = find(str(path)).prepare().digest
    path.write_text(text + "\n# changed\n")

    assert find(str(path)).prepare().digest != before


def test_two_workloads_in_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    body = "async def {0}(memory): pass\n{0} = workload()({0})\n"
    path.write_text("from sim.workload import workload\n" + body.format("one") + body.format("two"))

    with pytest.raises(UsageError, match="has 2 workloads"):
        find(str(path))


def test_a_name_in_two_packages_is_misuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "workloads" / "benchmarks" / "counter.py").read_text()
    for package in (tmp_path / "twice", tmp_path / "twice" / "again"):
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "counter.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sim.workload.WORKLOADS", "twice")

    with pytest.raises(MisuseError, match="another file has a workload 'counter'"):
        known()

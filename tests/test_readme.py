"""The README's workload does what the README says, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RCUSIM = Path(sys.executable).parent / "rcusim"


def rcusim(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(RCUSIM), *args], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_the_example_finds_the_bug_and_proves_its_fix(tmp_path: Path) -> None:
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "unpublish.py").write_text(example)

    found = rcusim("explore", "unpublish.py", cwd=tmp_path)
    fixed = rcusim("explore", "unpublish.py", "--param", "wait=yes", cwd=tmp_path)

    assert found.returncode == 1, found.stderr
    assert "BUG: KASAN: use-after-free in reader" in found.stdout
    assert fixed.returncode == 0, fixed.stderr
    assert "PROVED: unpublish" in fixed.stdout


def test_every_option_and_command_it_names_exists(tmp_path: Path) -> None:
    commands = [(), *((command,) for command in COMMANDS)]
    texts = [rcusim(*command, "--help", cwd=tmp_path).stdout for command in commands]
    known = set(re.findall(r"--[a-z][a-z-]+", "\n".join(texts)))

    assert set(re.findall(r"--[a-z][a-z-]+", README)) <= known


COMMANDS = ("list", "explore", "run", "replay", "show", "matrix")


def test_every_file_it_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_a_long_search_goes_on_as_it_says(tmp_path: Path) -> None:
    shown = re.findall(
        r"^    \$ rcusim (explore lastzero .*)\n    (.*) \.\.\.$", README, re.MULTILINE
    )
    assert len(shown) == 2

    for command, verdict in shown:
        done = rcusim(*command.split(), cwd=tmp_path)
        assert verdict in done.stdout, done.stderr

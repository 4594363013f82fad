"""The engine's hot modules compiled to machine code, where a compiler is at hand.

``rcusim-compile`` translates them with mypyc and puts the result beside the sources, in a
directory named after what they contain and after the interpreter.  Only what was made of exactly
these sources is ever loaded: after a change the Python files are used until it is made anew.
The results are the same to the byte, with or without; ``RCUSIM_PURE=1`` leaves it out.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

MODULES: Final = (
    "sim.choosing",
    "sim.clock",
    "sim.detectors.crash",
    "sim.detectors.data_race",
    "sim.detectors.happens_before",
    "sim.detectors.lifetime",
    "sim.detectors.loop",
    "sim.event",
    "sim.execution",
    "sim.explore",
    "sim.hosts.direct",
    "sim.macros",
    "sim.memory",
    "sim.ops",
    "sim.revival",
    "sim.run",
    "sim.stack",
    "sim.strategies.dpor",
    "sim.strategies.fatal",
    "sim.strategies.history",
    "sim.strategies.joint",
    "sim.strategies.plans",
    "sim.strategies.policy",
    "sim.strategies.races",
    "sim.strategies.steering",
    "sim.strategies.steps",
    "sim.threads",
    "sim.totals",
    "sim.undo",
)
SIM: Final = Path(__file__).parent
BUILT: Final = SIM / "__native__"
SUFFIX: Final = sysconfig.get_config_var("EXT_SUFFIX") or ".so"

# What is called from elsewhere in the one library need not be found by name there.
_FLAGS: Final = "-fvisibility=hidden -fno-semantic-interposition -fno-plt"  # of gcc and clang
_SETUP: Final = """\
from setuptools import setup
from mypyc.build import mypycify
setup(name="native", packages=[], ext_modules=mypycify({files!r}, opt_level="3"))
"""


def directory() -> Path:
    """Where the machine code of the present sources is, if it has been made."""
    text = hashlib.sha256(f"{SUFFIX} {_FLAGS}".encode())
    for module in MODULES:
        text.update(_source(module).read_bytes())
    return BUILT / text.hexdigest()[:16]


def _source(module: str) -> Path:
    return SIM.joinpath(*module.split(".")[1:]).with_suffix(".py")


class Finder:
    """Finds the compiled modules; everything else is left to Python."""

    def __init__(self, where: Path) -> None:
        self._files: Final = {
            file.name.removesuffix(SUFFIX): file for file in where.glob(f"*{SUFFIX}")
        }

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Where the module `name` is to be loaded from; None: not from here."""
        del path, target
        file = self._files.get(name)
        return None if file is None else importlib.util.spec_from_file_location(name, file)


def activate() -> None:
    """From now on import the compiled modules, if there are any and they are wanted."""
    if not os.environ.get("RCUSIM_PURE"):
        where = directory()
        if where.is_dir():
            sys.meta_path.insert(0, Finder(where))


def compiled() -> bool:
    """Whether this process runs compiled modules."""
    return any(isinstance(finder, Finder) for finder in sys.meta_path)


def build() -> str:
    """Compile the modules unless that has been done.  What is wrong; empty: nothing is."""
    target = directory()
    if target.is_dir():
        return ""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        left_out = shutil.ignore_patterns("__pycache__", BUILT.name)
        shutil.copytree(SIM, root / "sim", ignore=left_out)
        files = [str(Path(*module.split(".")).with_suffix(".py")) for module in MODULES]
        (root / "setup.py").write_text(_SETUP.format(files=files))
        (root / "mypy.ini").write_text("[mypy]\nignore_missing_imports = true\n")
        cflags = os.environ.get("CFLAGS", "")
        done = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=root,
            env={**os.environ, "RCUSIM_PURE": "1", "CFLAGS": f"{_FLAGS} {cflags}"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            return said[-1] if said else "mypyc failed and said nothing"
        _collect(root, target)
    return ""


def _collect(root: Path, target: Path) -> None:
    """Move what was built in `root` to `target`, all at once, and remove what was made before."""
    fresh = target.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for file in sorted(root.rglob(f"*{SUFFIX}")):
        if "build" not in file.relative_to(root).parts:
            module = ".".join(file.relative_to(root).parts)
            shutil.copy2(file, fresh / module)
    fresh.rename(target)
    for old in BUILT.iterdir():
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    """``rcusim-compile``: compile, or say why not; that is no error, for all works without."""
    wrong = build()
    if wrong:
        said = f"not compiled ({wrong}); it runs as Python, with the same results but more slowly"
    else:
        said = f"compiled to {directory()}"
    sys.stdout.write(f"rcusim's engine: {said}\n")

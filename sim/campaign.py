"""A campaign: a complete search on disk, so that it can go on after a kill at any moment.

One SQLite file per program and directory.  What is left of the search (`Dpor.packed`) and
what was done so far are written in one transaction, between two executions, about once a second:
whatever happens, the file holds a moment from which the search goes on as if nothing had been.
What was run since is run again, and counted once.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any, Final, final

from sim.errors import UsageError
from sim.strategies.steps import Packed
from sim.totals import Totals
from sim.workload import Program

VERSION: Final = 5
EVERY_S: Final = 1.0  # between two checkpoints
SHARE: Final = 20  # a checkpoint takes at most one in so many seconds
SUFFIX: Final = ".campaign"


@final
class Campaign:
    """The file of one campaign, open: no other process may use it meanwhile.

    left      what is left of the search; None: nothing, the search is over
    totals    as they were (`Totals.packed`)
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.left: Packed | None = None
        self.totals: dict[str, Any] = {}
        self._identity: dict[str, Any] = {}
        self._due = 0.0
        self._began = 0.0  # the last checkpoint, with what it takes to pack what is left
        if path.is_dir():
            raise UsageError(f"{path}: is a directory: remove it, or give another --out")
        try:
            self._file: Final = sqlite3.connect(path, timeout=0.0, isolation_level=None)
            self._file.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute("BEGIN IMMEDIATE")
            self._file.execute("CREATE TABLE IF NOT EXISTS campaign (name TEXT PRIMARY KEY, value)")
            self._file.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise UsageError(f"{path}: {error}") from None
            other = "another run is using it (--out names another directory)"
            raise UsageError(f"{path}: {other}") from None
        except sqlite3.DatabaseError as error:
            raise _damaged(path, str(error)) from None

    @classmethod
    def new(cls, program: Program, options: dict[str, Any], out: Path) -> Campaign:
        """A campaign that begins; the state of an earlier one is replaced."""
        path = campaign_path(program, out)
        try:
            campaign = cls(path)
        except DamagedError:
            path.unlink()
            for beside in ("-wal", "-shm"):
                path.with_name(path.name + beside).unlink(missing_ok=True)
            campaign = cls(path)
        campaign._identity = _identity(program, options)
        return campaign

    @classmethod
    def resume(cls, program: Program, options: dict[str, Any], out: Path) -> Campaign:
        """The campaign of `program` in `out`.  UsageError: none, damaged, or of something else."""
        path = campaign_path(program, out)
        if not path.exists():
            raise UsageError(f"--resume: {_none_there(program, out)}")
        campaign = cls(path)
        try:
            rows = dict(campaign._file.execute("SELECT name, value FROM campaign"))
            if not rows:
                raise UsageError(f"--resume: {path} holds nothing yet: leave --resume out")
            version, text = rows["version"], rows["state"]
            if version != VERSION:
                raise UsageError(f"{path}: campaign version {version}, this rcusim reads {VERSION}")
            if hashlib.sha256(text.encode()).hexdigest() != rows["sha256"]:
                raise _damaged(path, "its checksum is wrong")
            state = json.loads(text)
            campaign._identity = state["identity"]
            campaign.left, campaign.totals = state["left"], state["totals"]
        except (sqlite3.DatabaseError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UsageError):
                raise
            raise _damaged(path, str(error)) from None
        _compare(path, campaign._identity, _identity(program, options))
        return campaign

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        self._began = time.monotonic()
        return self._began >= self._due

    def keep(self, left: Packed | None, totals: Totals) -> None:
        """Write down what is left of the search, and what was done."""
        state = {"identity": self._identity, "left": left, "totals": totals.packed()}
        text = json.dumps(state, separators=(",", ":"))
        rows = {
            "version": VERSION,
            "state": text,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        try:
            self._file.execute("BEGIN IMMEDIATE")
            for row in rows.items():
                self._file.execute("INSERT OR REPLACE INTO campaign VALUES (?, ?)", row)
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            raise UsageError(f"{self.path}: the campaign cannot be saved: {error}") from None
        now = time.monotonic()
        self._due = now + max(EVERY_S, SHARE * (now - self._began))

    def close(self) -> None:
        """Leave the file to others."""
        self._file.close()


class DamagedError(UsageError):
    """The file of a campaign is damaged, or something else."""


def _damaged(path: Path, problem: str) -> DamagedError:
    told = f"{path}: damaged, or not a campaign ({problem}): begin anew, without --resume"
    return DamagedError(told)


def campaign_path(program: Program, out: Path) -> Path:
    """Where the campaign of a program is: the same program, the same name."""
    params = " ".join(f"{k}={v}" for k, v in sorted(program.params.items()))
    text = f"{params}|{sorted(program.machine.environment.items())}"
    short = hashlib.sha256(text.encode()).hexdigest()[:8]
    machine = f"-{program.machine.version}" if program.machine.version else ""
    return out / f"{program.workload.name}{machine}-{short}{SUFFIX}"


def _identity(program: Program, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "workload": program.workload.name,
        "params": dict(program.params),
        "environment": dict(program.machine.environment),
        "digest": program.digest,
        "options": options,
    }


def _compare(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UsageError if the campaign is of something else than what is asked for."""
    if then["digest"] != now["digest"]:
        raise UsageError(
            f"--resume: the model or the workload has changed since {path} (digest "
            f"{then['digest']}, now {now['digest']}): begin anew, without --resume"
        )
    for name, value in now["options"].items():
        before = then["options"].get(name)
        if before != value:
            raise UsageError(
                f"--resume: {path} was begun with {name}={before}, not {value}: give the same, "
                "or begin anew, without --resume"
            )
    if then != now:
        raise UsageError(f"--resume: {path} is of another program: begin anew, without --resume")


def _none_there(program: Program, out: Path) -> str:
    """That there is nothing to resume, and what there is instead."""
    machine = f"-{program.machine.version}" if program.machine.version else ""
    asked = " ".join(f"{k}={v}" for k, v in program.params.items()) or "no parameters"
    told = f"there is no campaign of {program.workload.name} with {asked} in {out}"
    others = sorted(out.glob(f"{program.workload.name}{machine}-*{SUFFIX}"))
    if others:
        told += f"; with other parameters or fixes there is {', '.join(map(str, others))}"
    return told

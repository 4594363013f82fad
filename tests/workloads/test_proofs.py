"""Proofs: optimal DPOR runs every class of executions of a workload, and finds nothing.

What random executions come to has to be among what the search has seen.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sim.explore import Budget, Explorer, Result
from sim.strategies.dpor import Dpor
from sim.strategies.random_walk import RandomWalk
from sim.workload import find

RCUSIM = Path(sys.executable).parent / "rcusim"

Case = tuple[str, str, dict[str, str], int]

#: Workload, kernel, parameters, number of classes.
PROVED: list[Case] = [
    ("inner_map_replace", "6.8", {}, 49),
    ("tailcall_poke", "5.10", {}, 49),
]
PROVED_SLOW: list[Case] = [
    ("inner_map_replace", "6.8", {"readers": "2"}, 343),
]
RANDOM = 2000  # random executions to compare with

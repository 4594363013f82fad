"""Executions that begin where another one left off find the model as it was then.

What modelled code keeps outside of cells is not taken back; a list there would grow with every
execution, keep what it names from being reported as lost, and be walked through at each end.
"""

from collections.abc import Iterator

import pytest

from sim.run import Rewound
from sim.strategies.dpor import Dpor
from sim.workload import find

STEPS = 20_000  # as many as an execution may take
FEW, MANY = 15, 60  # executions


def items(objects: object) -> Iterator[tuple[str, int]]:
    """The lists and mappings that modelled objects hold, and how long they are."""
    assert isinstance(objects, tuple)
    for found in objects:
        for name, value in vars(found).items():
            if isinstance(value, list | dict | set):
                yield f"{type(found).__name__}.{name}", len(value)


@pytest.mark.parametrize(
    ("workload", "version"),
    [
        ("inner_map_replace", "6.8"),
        ("tailcall_load_window", "6.7"),
        ("tailcall_trampoline", "6.7"),
        ("prog_array_clear", "5.10"),
        ("n7_prog_array_insert_clear", "5.10"),
    ],
)
def test_nothing_grows_with_the_number_of_executions(workload: str, version: str) -> None:
    program = find(workload).prepare({}, version=version)
    search = Dpor()
    rewound = Rewound(program, search, STEPS)
    longest: dict[str, int] = {}
    try:
        for nth in range(MANY):
            if not search.begin():
                break
            memory = rewound.next().execution.memory
            for name, length in items(memory.live()):
                if nth < FEW:
                    longest[name] = max(length, longest.get(name, 0))
                else:
                    assert length <= longest.get(name, 0) + FEW, name
    finally:
        rewound.close()

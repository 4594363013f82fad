"""All tests run the Python engine, and say so to the processes that they start.

Many replace a function of the engine by a wrong one; callers that are compiled would not notice.
tests/sim/test_native.py compares the compiled engine with the Python one.
"""

import os

os.environ.setdefault("RCUSIM_PURE", "1")

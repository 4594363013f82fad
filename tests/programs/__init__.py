"""Small concurrent programs as data, for properties of the engine.

code         programs: a tuple of threads, each a tuple of instructions
interpreter  makes coroutines of them, over a fixed set of shared places
running      runs a program once, or under every interleaving; what an execution came to
drawing      Hypothesis strategies that draw programs

Every thread has one register, `acc`, that holds its last result, so that values flow and
control depends on them.
"""

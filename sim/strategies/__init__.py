"""Strategies: each decides every choice of an execution.  One file, one algorithm."""

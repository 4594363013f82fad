"""Traces: a run as JSON Lines, written as it happens, read back, and run again."""

"""Hosts resume coroutines; everything else about a run is the execution's."""

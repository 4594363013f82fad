"""Locks, allocation, deferred work, files: what the rest of the model stands on."""

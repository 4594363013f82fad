"""Workloads: one file asks one question of the kernel model."""

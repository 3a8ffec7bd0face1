"""Experiments by name, and benchmarks."""

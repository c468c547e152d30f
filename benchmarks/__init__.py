"""Measurements of flowc: run ``python -m benchmarks``."""

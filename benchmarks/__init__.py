"""Benchmarks, ``python -m benchmarks.run NAME``: tables of provider x case, stored as JSON."""

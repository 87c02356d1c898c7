"""Experiments, benchmarks, attack and fault suites, and figures for the docs; not shipped."""

"""Benchmarks: what an event costs, in microseconds of CPU."""

"""The parts of benchmark_scaling.py."""

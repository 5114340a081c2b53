"""Measurements: of serving (`python -m benchmarks`), of training, of quality."""

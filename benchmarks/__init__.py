"""Measurements: `kernels` for functions (pytest-benchmark), `paths` for whole processes. Each checks its own answer."""

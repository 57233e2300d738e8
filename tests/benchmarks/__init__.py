# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the engine: ``python tests/benchmarks/run.py OUTPUT_DIR``."""

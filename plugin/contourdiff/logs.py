# SPDX-License-Identifier: Apache-2.0
"""Loggers of libraries. This module imports nothing, so that the command line starts quickly."""

LIBRARIES = ("monai", "ignite", "matplotlib", "py.warnings")
"""Loggers that are heard with ``--verbose`` alone."""

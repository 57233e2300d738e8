# SPDX-License-Identifier: Apache-2.0
"""What libraries log. This module imports nothing at once, so that the command line starts quickly."""

import logging

LIBRARIES = ("monai", "ignite", "matplotlib", "py.warnings")
"""Loggers that are heard with ``--verbose`` alone."""


def silence_itk() -> None:
    """Let ITK, which writes to standard error by itself, print its warnings with ``--verbose`` alone."""
    import SimpleITK

    package = logging.getLogger(__name__.partition(".")[0])
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(package.isEnabledFor(logging.DEBUG))

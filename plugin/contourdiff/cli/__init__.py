# SPDX-License-Identifier: Apache-2.0
"""Command line of contourdiff: each command's name, arguments and help stand together."""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from contourdiff.cli import (  # which register their commands
        deployment,
        pairs,
        report,
        settings,
        training,
        transfer,
        translation,
    )
    from contourdiff.cli.program import PROGRAM
except KeyboardInterrupt:
    sys.stderr.write("interrupted\n")
    sys.exit(130)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see [`contourdiff.cli.program.Program.main`][]."""
    PROGRAM.main(arguments)

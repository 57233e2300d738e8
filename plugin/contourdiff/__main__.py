# SPDX-License-Identifier: Apache-2.0
"""``python -m contourdiff``."""

from __future__ import annotations

from contourdiff.cli import main

if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""``python -m contourdiff``."""

from contourdiff.cli import main

if __name__ == "__main__":
    main()

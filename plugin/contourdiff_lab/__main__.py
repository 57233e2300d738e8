# SPDX-License-Identifier: Apache-2.0
"""``python -m contourdiff_lab``."""

from contourdiff_lab.commands import main

if __name__ == "__main__":
    main()

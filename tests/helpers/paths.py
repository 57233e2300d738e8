# SPDX-License-Identifier: Apache-2.0
"""Folders of the repository and of real data; programs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "bundles" / "contourdiff_ct2mr" / "configs"
LABEL_MAP = str(CONFIGS.parent / "label_maps" / "vertebrae.json")
DATA = REPOSITORY.parent / "shared" / "data"


def program(name: str) -> str | None:
    """Path of a program that a package of this environment, or the system, has; ``None`` without one."""
    environment = Path(sys.executable).parent
    return shutil.which(name, path=f"{environment}{os.pathsep}{os.environ['PATH']}")

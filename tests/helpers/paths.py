# SPDX-License-Identifier: Apache-2.0
"""Folders of the repository and of real data."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "bundles" / "contourdiff_ct2mr" / "configs"
LABEL_MAP = str(CONFIGS.parent / "label_maps" / "vertebrae.json")
DATA = REPOSITORY.parent / "shared" / "data"

# SPDX-License-Identifier: Apache-2.0
"""The record of an experiment's plan beside its results: they may grow, and never change their meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contourdiff.data.atomic import write_text

GROWING = ("folders", "groups", "mr_training", "baselines", "folds")
"""Entries that may gain names; a name that is there keeps its meaning."""


def record_plan(path: Path, record: Mapping[str, Any]) -> None:
    """Write ``record`` as JSON, with the names that an older record of the same plan has beyond it.

    Raises ``ValueError`` if the older one is of another plan.
    """
    record = json.loads(
        json.dumps(record, default=str)
    )  # as it will be read: lists for tuples, text for paths
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    grown = {name: old.get(name, {}) | record[name] for name in GROWING}
    changed = sorted(name for name in old if name not in GROWING and old[name] != record.get(name))
    for name in GROWING:
        changed += [
            f"{name} {key}" for key, value in old.get(name, {}).items() if grown[name][key] != value
        ]
    if changed:
        raise ValueError(
            f"{path.parent} holds a table of another plan (other: {changed}); pass another output_dir"
        )
    write_text(path, json.dumps({**record, **grown}, indent=2) + "\n")

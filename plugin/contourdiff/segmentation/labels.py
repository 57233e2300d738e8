# SPDX-License-Identifier: Apache-2.0
"""The classes of a transfer: named by the user, or those of the labels; and which of them are bone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contourdiff.data.atomic import read_json, write_json
from contourdiff.data.label_map import LabelMap
from contourdiff.pairs import folder


def write_classes(path: Path, classes: Mapping[str, str]) -> Path:
    """Write a label map of classes by name, each with its label values, such as ``{"vertebra": "27-31,33"}``.

    The same values are those of MR with labels. Returns ``path``; ``ValueError`` for values that are no numbers.
    """
    values = {name: text.split(",") for name, text in classes.items()}
    write_json(path, {"classes": list(classes), "ct": values, "mr": values})
    LabelMap(path)
    return path


def pair_classes(pairs: str | Path) -> dict[str, Any]:
    """Label map of a folder of pairs, as the content of its file.

    That is the one that the pairs were made with. Without one, every label value is a class, in CT as in MR.
    """
    path = Path(pairs)
    if (path / folder.LABEL_MAP).is_file():
        return dict(read_json(path / folder.LABEL_MAP))
    names = read_json(path / folder.SETTINGS)["classes"]
    classes: dict[str, list[int]] = {}
    for value in sorted(names, key=int):
        classes[names[value]] = [int(value)]
    return {"classes": list(classes), "ct": classes, "mr": classes}


def bone_classes(pairs: str | Path) -> list[int]:
    """Numbers of the classes, from 1, that a folder of pairs was made with as bone."""
    bone = read_json(Path(pairs) / folder.SETTINGS)["settings"]["bone_values"]
    content = pair_classes(pairs)
    numbers = []
    for number, name in enumerate(content["classes"], start=1):
        if set(bone).intersection(content["ct"][name]):
            numbers.append(number)
    return numbers

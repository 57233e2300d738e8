# SPDX-License-Identifier: Apache-2.0
"""Label maps: the classes of a segmentation, and the label values of each in CT and MR."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from monai.utils import ensure_tuple

SIDES = ("ct", "mr")


class LabelMap:
    """Classes of a segmentation, and the label values of each class in CT and in MR, from a JSON file.

    A value may be a number or a range of numbers, both ends included:

        {"classes": ["vertebra"], "ct": {"vertebra": ["27-50"]}, "mr": {"vertebra": [1, 2, 3, 4, 5, 6, 7]}}

    Values that no class lists are background. The attribute ``classes`` holds the names by number, from 1 in the order
    of the file, without the background. Raises ``FileNotFoundError`` if there is no file at ``path``, ``ValueError`` if
    it is not of this form or one value belongs to two classes.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"expected a label map at {path}, found none; pass --label_map")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = [str(name) for name in content["classes"]]
            self._values = {side: _values_of(content[side], names) for side in SIDES}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"expected classes and, for ct and mr, the label values of each class in {path}, got: {error!r}"
            ) from error
        if not names or len(set(names)) != len(names):
            raise ValueError(f"expected one class or more, each named once, in {path}, got {names}")
        self.classes = dict(enumerate(names, start=1))

    def values(self, side: str) -> dict[int, list[int]]:
        """Label values of each class in ``"ct"`` or ``"mr"``, ``{1: [27, 28]}``; ``ValueError`` for another side."""
        if side not in SIDES:
            raise ValueError(f"side must be one of {SIDES}, got {side!r}")
        return {number: self._values[side][name] for number, name in self.classes.items()}


def _values_of(side: dict, names: Sequence[str]) -> dict[str, list[int]]:
    if set(side) != set(names):
        raise ValueError(f"classes {sorted(names)} but values for {sorted(side)}")
    values: dict[str, list[int]] = {}
    listed: set[int] = set()
    for name in names:
        values[name] = []
        for entry in ensure_tuple(side[name]):
            numbers = _range(entry)
            repeated = listed.intersection(numbers)
            if repeated:
                raise ValueError(f"values listed twice: {sorted(repeated)}")
            listed.update(numbers)
            values[name].extend(numbers)
    return values


def _range(entry: int | str) -> range:
    first, _, last = str(entry).partition("-")
    numbers = range(int(first), int(last or first) + 1)
    if len(numbers) == 0 or numbers[0] < 1:
        raise ValueError(f"{entry!r} is no range of label values above 0")
    return numbers

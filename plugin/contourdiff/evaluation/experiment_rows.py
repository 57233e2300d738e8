# SPDX-License-Identifier: Apache-2.0
"""The rows of the experiment's table: what each learns from, and how it differs from the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contourdiff.rivals.training import RIVALS

ROWS = ("without_adaptation", "unconditional", "single_candidate", "ours", "ours_t1_t2")
WITHOUT_ADAPTATION, UNCONDITIONAL, SINGLE_CANDIDATE, OURS, OURS_T1_T2 = ROWS
RANDOMIZED, UPPER_BOUND = "randomized", "upper_bound"


@dataclass(frozen=True)
class Row:
    """What is particular to a row.

    Args:
        learns_from: images that its translator is trained on, or without one its segmentation network.
        translates: whether networks are trained on translations of the CT.
        rival: whether the translator is a method of [`contourdiff.rivals.training`][].
        segments: whether that method's result is a segmentation network, so that none is trained on its translations.
        mr_training: whether the translator is trained on the plan's ``mr_training``.
        overlays: overlays of ``segmentation_train.json``.
        segmentation: settings of ``segmentation_train.json``.
        translation: settings of ``inference.json``.
    """

    learns_from: str
    translates: bool = False
    rival: bool = False
    segments: bool = False
    mr_training: bool = False
    overlays: tuple[str, ...] = ()
    segmentation: Mapping[str, Any] = field(default_factory=dict)
    translation: Mapping[str, Any] = field(default_factory=dict)


FOLDER = Row("as the tool does", overlays=("segmentation_any",))
"""A row of translations by another tool."""

TABLE = {
    WITHOUT_ADAPTATION: Row("CT with labels", overlays=("segmentation_ct",)),
    RANDOMIZED: Row("CT with labels", overlays=("segmentation_ct", "segmentation_randomized")),
    **{
        name: Row(rival.needs, translates=True, rival=True, segments=rival.segments, mr_training=True)
        for name, rival in RIVALS.items()
    },
    UNCONDITIONAL: Row("MR", translates=True, mr_training=True),
    SINGLE_CANDIDATE: Row("MR", translates=True, translation={"candidates": 1, "max_rounds": 1}),
    OURS: Row("MR", translates=True),
    OURS_T1_T2: Row("MR", translates=True),
    UPPER_BOUND: Row("MR with labels", overlays=("segmentation_any",), segmentation={"side": "mr"}),
}
"""Every row by name, in the order of the report."""


def row_of(name: str) -> Row:
    """The row of that name, or that of another tool's folder."""
    return TABLE.get(name, FOLDER)

# SPDX-License-Identifier: Apache-2.0
"""The rows of the experiment's table: what each learns from, and how it differs from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contourdiff.bundle import config_files, read_config
from contourdiff_lab.baselines.training import BASELINES

ROWS = ("without_adaptation", "unconditional", "single_candidate", "ours", "ours_t1_t2")
WITHOUT_ADAPTATION, UNCONDITIONAL, SINGLE_CANDIDATE, OURS, OURS_T1_T2 = ROWS
SMOKE: dict[str, dict[str, Any]] = {
    "translation": {"num_inference_steps": 2, "candidates": 2, "max_rounds": 1},
    "segmentation": {"max_epochs": 1},
    "unconditional": {"max_epochs": 1, "epoch_length": 2},
    "baselines": {
        **{"max_epochs": 1, "epoch_length": 2},
        **{"generator_channels": 4, "generator_blocks": 1, "discriminator_channels": 4},
        **{
            "task_epochs": 1,
            "feature_epochs": 1,
            "segmentation_epoch_length": 2,
        },  # stages of CyCADA
    },
}
"""Settings that cut everything short."""
RANDOMIZED, UPPER_BOUND = "randomized", "upper_bound"


@dataclass(frozen=True)
class Row:
    """What is particular to a row.

    Args:
        learns_from: images that its translator is trained on, or without one its segmentation network.
        translates: whether networks are trained on translations of the CT.
        baseline: whether the translator is a method of [`contourdiff_lab.baselines.training`][].
        segments: whether that method's result is a segmentation network, so that none is trained on its translations.
        mr_training: whether the translator is trained on the plan's ``mr_training``.
        overlays: overlays of ``segmentation_train.json``.
        segmentation: settings of ``segmentation_train.json``.
        translation: settings of ``inference.json``.
    """

    learns_from: str
    translates: bool = False
    baseline: bool = False
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
        name: Row(
            baseline.needs,
            translates=True,
            baseline=True,
            segments=baseline.segments,
            mr_training=True,
        )
        for name, baseline in BASELINES.items()
    },
    UNCONDITIONAL: Row("MR", translates=True, mr_training=True),
    SINGLE_CANDIDATE: Row("MR", translates=True, translation={"candidates": 1, "max_rounds": 1}),
    OURS: Row("MR", translates=True),
    OURS_T1_T2: Row("MR", translates=True),
    UPPER_BOUND: Row("MR with labels", overlays=("segmentation_any",), segmentation={"side": "mr"}),
}
"""Every row by name, in the order of the report."""


def baseline_settings(
    rows: Sequence[str], settings: Mapping[str, Any], bundle: str | Path | None = None
) -> dict[str, dict[str, Any]]:
    """For every baseline among the rows those of the settings that its configs have.

    Raises ``ValueError`` for a setting that none of them has.
    """
    own = {}
    for row in (row for row in rows if row_of(row).baseline):
        base, *overlays = BASELINES[row].configs
        known = read_config(config_files(bundle, overlays, base=base), {}).get().keys()
        own[row] = {
            name: value
            for name, value in settings.items()
            if name.split("#")[0].split("::")[0] in known
        }
    unknown = (
        settings.keys()
        - SMOKE["baselines"].keys()
        - {name for given in own.values() for name in given}
    )
    if own and unknown:
        raise ValueError(
            f"expected settings of {list(own)}, got {sorted(unknown)}, which none of them has"
        )
    return own


def row_of(name: str) -> Row:
    """The row of that name, or that of another tool's folder."""
    return TABLE.get(name, FOLDER)

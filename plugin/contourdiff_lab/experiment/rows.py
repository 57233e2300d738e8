# SPDX-License-Identifier: Apache-2.0
"""The rows of the experiment's table: what each learns from, and how it differs from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ReferenceResolver

from contourdiff_lab.baselines.training import BASELINES
from contourdiff_lab.config_files import read_lab_config

WITHOUT_ADAPTATION = "without_adaptation"
UNCONDITIONAL = "unconditional"
SINGLE_CANDIDATE = "single_candidate"
OURS = "ours"
OURS_T1_T2 = "ours_t1_t2"
OURS_CROSSDOMAIN = "ours_crossdomain"
RANDOMIZED = "randomized"
CROSSDOMAIN = "crossdomain"
UPPER_BOUND = "upper_bound"
ROWS = (WITHOUT_ADAPTATION, CROSSDOMAIN, OURS, OURS_T1_T2)
"""The rows of an experiment by default."""
SEGMENTATION_CONFIGS = ("segmentation_train", "segmentation_steps")
"""Config of every segmentation network: one augmentation, one number of steps, the last weights."""
AUGMENTATION_IS_THE_METHOD = "its augmentation is its method; all else is equal"

SMOKE: dict[str, dict[str, Any]] = {
    "translation": {"num_inference_steps": 2, "candidates": 2, "max_rounds": 1},
    "segmentation": {"max_epochs": 1, "epoch_length": 2},
    "unconditional": {"max_epochs": 1, "epoch_length": 2, "picture_interval": 2},
    "baselines": {
        "max_epochs": 1,
        "epoch_length": 2,
        "generator_channels": 4,
        "generator_blocks": 1,
        "discriminator_channels": 4,
    },
}
"""Settings that cut everything short."""


@dataclass(frozen=True)
class Row:
    """What is particular to a row.

    Args:
        learns_from: images that its translator is trained on, or without one its segmentation network.
        translates: whether networks are trained on translations of the CT.
        baseline: whether the translator is a method of [`contourdiff_lab.baselines.training`][].
        segments: whether that method's result is a segmentation network, so that none is trained on its translations.
        mr_training: whether the translator is trained on the plan's ``mr_training``.
        sees_contour: whether the translator is given the contour of the CT as its condition.
        images_of: row whose translations are used, if not its own.
        differs: what of its training is not as in all other rows, in words.
        overlays: overlays of ``segmentation_train.json``.
        segmentation: settings of ``segmentation_train.json``.
        translation: settings of ``inference.json``.
    """

    learns_from: str
    translates: bool = False
    baseline: bool = False
    segments: bool = False
    mr_training: bool = False
    sees_contour: bool = False
    images_of: str | None = None
    differs: str = ""
    overlays: tuple[str, ...] = ()
    segmentation: Mapping[str, Any] = field(default_factory=dict)
    translation: Mapping[str, Any] = field(default_factory=dict)


FOLDER = Row("as the tool does", overlays=("segmentation_any",))
"""A row of translations by another tool."""


DIFFERENCES = {
    "synseg": (
        "its network learns together with the generators: a step for each of theirs, of their batch size; the same "
        "augmentation, which the generator's gradient passes unchanged"
    ),
    "cycada": (
        "its network has that number of steps twice: on the CT, then on translations, and on MR without labels; the "
        "same augmentation"
    ),
}
"""What differs in the trainings of baselines whose own segmentation network is tested."""


def _baseline_row(name: str) -> Row:
    baseline = BASELINES[name]
    return Row(
        baseline.needs,
        translates=True,
        baseline=True,
        segments=baseline.segments,
        mr_training=True,
        differs=DIFFERENCES.get(name, ""),
    )


TABLE = {
    WITHOUT_ADAPTATION: Row("CT with labels", overlays=("segmentation_ct",)),
    RANDOMIZED: Row(
        "CT with labels",
        differs=AUGMENTATION_IS_THE_METHOD,
        overlays=("segmentation_ct", "segmentation_randomized"),
    ),
    CROSSDOMAIN: Row(
        "CT with labels",
        differs=AUGMENTATION_IS_THE_METHOD,
        overlays=("segmentation_ct", "segmentation_crossdomain"),
    ),
    **{name: _baseline_row(name) for name in BASELINES},
    UNCONDITIONAL: Row(
        "MR",
        translates=True,
        mr_training=True,
        differs="its second network takes 4 steps",
        translation={"num_refinement_steps": 4},
    ),
    SINGLE_CANDIDATE: Row(
        "MR",
        translates=True,
        sees_contour=True,
        translation={"candidates": 1, "max_rounds": 1},
    ),
    OURS: Row("MR", translates=True, sees_contour=True),
    OURS_CROSSDOMAIN: Row(
        "MR",
        translates=True,
        sees_contour=True,
        images_of=OURS,
        differs=AUGMENTATION_IS_THE_METHOD,
        overlays=("segmentation_crossdomain",),
    ),
    OURS_T1_T2: Row(
        "MR",
        translates=True,
        sees_contour=True,
        differs="twice as many images, in the same number of steps",
    ),
    UPPER_BOUND: Row("MR with labels", overlays=("segmentation_any",), segmentation={"side": "mr"}),
}
"""Every row by name, in the order of the report."""


def row_of(name: str) -> Row:
    """The row of that name, or that of another tool's folder."""
    return TABLE.get(name, FOLDER)


def baseline_settings(
    rows: Sequence[str], settings: Mapping[str, Any], bundle: str | Path | None = None
) -> dict[str, dict[str, Any]]:
    """For every baseline among the rows those of the settings that its configs have.

    Raises ``ValueError`` for a setting that none of them has.
    """
    by_baseline: dict[str, dict[str, Any]] = {}
    unknown = settings.keys() - SMOKE["baselines"].keys()
    for name in rows:
        if not row_of(name).baseline:
            continue
        config = read_lab_config(BASELINES[name].configs, {}, bundle).get()
        accepted = {}
        for setting, value in settings.items():
            entry = ReferenceResolver.split_id(setting)[0]
            if entry in config:
                accepted[setting] = value
        by_baseline[name] = accepted
        unknown -= accepted.keys()
    if by_baseline and unknown:
        raise ValueError(
            f"expected settings of {list(by_baseline)}, got {sorted(unknown)}, which none of them has"
        )
    return by_baseline

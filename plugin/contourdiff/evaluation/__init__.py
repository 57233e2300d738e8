# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a trained translator: agreement on held-out slices, curves, the gap between contours."""

from __future__ import annotations

from contourdiff.evaluation.agreement import (
    agreement_picture,
    evaluate_bundle,
    held_out_agreement,
    summarize,
    write_agreement,
)
from contourdiff.evaluation.curves import loss_curve
from contourdiff.evaluation.gap import contour_gap, contour_statistics, tissue_regions
from contourdiff.evaluation.gap_page import write_gap
from contourdiff.evaluation.scores import SegmentationScores, score_case, summarize_scores, write_scores

__all__ = [
    "SegmentationScores",
    "agreement_picture",
    "contour_gap",
    "contour_statistics",
    "evaluate_bundle",
    "held_out_agreement",
    "loss_curve",
    "score_case",
    "summarize",
    "summarize_scores",
    "tissue_regions",
    "write_agreement",
    "write_gap",
    "write_scores",
]

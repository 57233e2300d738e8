# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a trained translator: agreement on held-out slices, curves of the training."""

from __future__ import annotations

from contourdiff.evaluation.agreement import (
    agreement_picture,
    evaluate_bundle,
    held_out_agreement,
    summarize,
    write_agreement,
)
from contourdiff.evaluation.curves import loss_curve
from contourdiff.evaluation.scores import SegmentationScores, score_case, summarize_scores, write_scores

__all__ = [
    "SegmentationScores",
    "agreement_picture",
    "evaluate_bundle",
    "held_out_agreement",
    "loss_curve",
    "score_case",
    "summarize",
    "summarize_scores",
    "write_agreement",
    "write_scores",
]

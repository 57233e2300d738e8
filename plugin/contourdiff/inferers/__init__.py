# SPDX-License-Identifier: Apache-2.0
"""Inferers: one for training on noisy slices with their contours, one for translating a volume of contours."""

from __future__ import annotations

from contourdiff.inferers.engine import Denoiser
from contourdiff.inferers.scan import VolumeRecord
from contourdiff.inferers.training import ContourDiffusionInferer, ContourPrepareBatch
from contourdiff.inferers.volume import ContourTranslationInferer, check_spread

__all__ = [
    "ContourDiffusionInferer",
    "ContourPrepareBatch",
    "ContourTranslationInferer",
    "Denoiser",
    "VolumeRecord",
    "check_spread",
]

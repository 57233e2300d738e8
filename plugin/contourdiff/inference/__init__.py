# SPDX-License-Identifier: Apache-2.0
"""From contours to a saved MR."""

from contourdiff.inference.denoiser import CascadeDenoiser, Denoiser, denoiser_of
from contourdiff.inference.inferer import (
    ContourTranslationInferer,
    Execution,
    NeighborGuidedInferer,
)
from contourdiff.inference.volume_state import VolumeResult

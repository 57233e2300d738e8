# SPDX-License-Identifier: Apache-2.0
"""From contours to a saved MR."""

from contourdiff.inference.denoiser import CascadeDenoiser, Denoiser
from contourdiff.inference.execution import Execution
from contourdiff.inference.inferer import (
    IndependentCandidates,
    NeighborGuided,
    PaintedSlice,
    Painter,
    VolumeInferer,
)
from contourdiff.inference.volume_state import VolumeResult, VolumeState

# SPDX-License-Identifier: Apache-2.0
"""Transforms for MONAI pipelines: background filter, contour, in-plane resampling, label classes."""

from __future__ import annotations

from contourdiff.transforms.background_filter import BackgroundFilter, BackgroundFilterd, BackgroundFilterDict
from contourdiff.transforms.contour import Contour, Contourd, ContourDict
from contourdiff.transforms.gray_levels import GrayLevels, GrayLevelsd, GrayLevelsDict
from contourdiff.transforms.in_plane_resample import ChunkedResample, ChunkedSpacingd, ChunkedSpacingDict
from contourdiff.transforms.in_plane_smooth import InPlaneSmooth, InPlaneSmoothd, InPlaneSmoothDict
from contourdiff.transforms.rand_contour import RandContour, RandContourd, RandContourDict
from contourdiff.transforms.remap_labels import RemapLabels, RemapLabelsd, RemapLabelsDict
from contourdiff.transforms.slicewise import Slicewise, Slicewised, SlicewiseDict

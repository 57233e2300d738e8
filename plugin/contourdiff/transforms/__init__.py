# SPDX-License-Identifier: Apache-2.0
"""Transforms for MONAI pipelines: background filter, contour, slices."""

from __future__ import annotations

from contourdiff.transforms.array import BackgroundFilter, Contour, GrayLevels, InPlaneSmooth, Slicewise
from contourdiff.transforms.classes import JoinClasses, JoinClassesd, JoinClassesDict
from contourdiff.transforms.dictionary import (
    BackgroundFilterd,
    BackgroundFilterDict,
    Contourd,
    ContourDict,
    GrayLevelsd,
    GrayLevelsDict,
    InPlaneSmoothd,
    InPlaneSmoothDict,
    Slicewised,
    SlicewiseDict,
)
from contourdiff.transforms.planes import Planes
from contourdiff.transforms.random import RandContour, RandContourd, RandContourDict
from contourdiff.transforms.spacing import SlabResample, SlabSpacingd, SlabSpacingDict

__all__ = [
    "BackgroundFilter",
    "BackgroundFilterDict",
    "BackgroundFilterd",
    "Contour",
    "ContourDict",
    "Contourd",
    "GrayLevels",
    "GrayLevelsDict",
    "GrayLevelsd",
    "InPlaneSmooth",
    "InPlaneSmoothDict",
    "InPlaneSmoothd",
    "JoinClasses",
    "JoinClassesDict",
    "JoinClassesd",
    "Planes",
    "RandContour",
    "RandContourDict",
    "RandContourd",
    "SlabResample",
    "SlabSpacingDict",
    "SlabSpacingd",
    "Slicewise",
    "SlicewiseDict",
    "Slicewised",
]

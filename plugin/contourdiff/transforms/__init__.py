# SPDX-License-Identifier: Apache-2.0
"""Transforms for MONAI pipelines: background filter, contour, in-plane resampling, label classes."""

from contourdiff.transforms.add_outline import AddOutlined
from contourdiff.transforms.background_filter import BackgroundFilter, BackgroundFilterd
from contourdiff.transforms.bone_surroundings import RandBoneSurroundings, RandBoneSurroundingsd
from contourdiff.transforms.cascade_items import CoarseStaged, RefinerStaged
from contourdiff.transforms.contour import Contour, Contourd
from contourdiff.transforms.cross_domain import RandCrossDomain, RandCrossDomaind
from contourdiff.transforms.gray_levels import GrayLevels, GrayLevelsd
from contourdiff.transforms.in_plane_resample import InPlaneResampled
from contourdiff.transforms.opencv_contour import OpenCVContour, OpenCVContourd
from contourdiff.transforms.rand_contour import RandContour, RandContourd
from contourdiff.transforms.rand_remap import RandRemap, RandRemapd
from contourdiff.transforms.remap_labels import RemapLabels, RemapLabelsd
from contourdiff.transforms.rician_noise import RicianNoised
from contourdiff.transforms.slicewise import Slicewise, Slicewised

# SPDX-License-Identifier: Apache-2.0
"""Measures of contours, images and segmentations."""

from contourdiff.metrics.segmentation import SegmentationScores

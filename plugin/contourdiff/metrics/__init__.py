# SPDX-License-Identifier: Apache-2.0
"""Measures of contours, images and segmentations."""

from __future__ import annotations

from contourdiff.metrics.segmentation import SegmentationScores

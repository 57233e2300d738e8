# SPDX-License-Identifier: Apache-2.0
"""Contours to translate: of a real CT where there is one, else of the digital phantom."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from benchmarks.settings import REPOSITORY, Settings, inference_config
from contourdiff.data.atomic import atomic_write
from contourdiff.phantom import write_phantom

SIZE_PX = 256
KEPT_SLICES = 16
TORSO = REPOSITORY.parent / "shared" / "data" / "ct" / "torso_ct.nii.gz"


def default_ct() -> str:
    """The torso CT beside the repository, or empty if there is none."""
    return str(TORSO) if TORSO.is_file() else ""


def random_contours(slices: int, size_px: int) -> torch.Tensor:
    """Noise of the density of contours, ``(slices, size_px, size_px)`` float32 of 0 and 1; no slice is empty."""
    drawn = torch.rand(slices, size_px, size_px, generator=torch.Generator().manual_seed(0))
    return (drawn > 0.95).float()


def middle_contours(settings: Settings, directory: Path) -> tuple[np.ndarray, str]:
    """Contours of the middle slices of a CT, through the bundle's own preprocessing, kept in ``directory``.

    Returns:
        ``(16, 256, 256)`` float32 of 0 and 1, cut or padded about the middle of all contours; and what they are of.
    """
    name = Path(settings.ct).name if settings.ct else "digital phantom"
    digest = hashlib.sha256(str(settings.ct).encode()).hexdigest()[:8]
    kept = directory / f"contours_{digest}.npy"
    if not kept.is_file():
        path = settings.ct or str(write_phantom(directory / "phantom"))
        item = inference_config().get_parsed_content("preprocessing")({"image": path})
        volume = np.asarray(item["image"][0]) > 0
        start = max(volume.shape[0] // 2 - KEPT_SLICES // 2, 0)
        slices = in_frame(volume[start : start + KEPT_SLICES], SIZE_PX)
        with atomic_write(kept) as aside:
            np.save(aside, slices.astype(np.uint8))
    return np.load(kept).astype(np.float32), name


def in_frame(volume: np.ndarray, size_px: int) -> np.ndarray:
    """``(slices, H, W)`` cut or padded with zeros to ``(slices, size_px, size_px)``, its filled box in the middle."""
    rows, frame_rows = _spans(volume.any(axis=(0, 2)), size_px)
    columns, frame_columns = _spans(volume.any(axis=(0, 1)), size_px)
    frame = np.zeros((len(volume), size_px, size_px), volume.dtype)
    frame[:, frame_rows, frame_columns] = volume[:, rows, columns]
    return frame


def _spans(filled: np.ndarray, size_px: int) -> tuple[slice, slice]:
    """Of a line, what a frame in the middle of the filled part shows, and where in the frame it lies."""
    positions = np.flatnonzero(filled)
    first = int(positions[0] + positions[-1] + 1) // 2 - size_px // 2
    start = max(first, 0)
    stop = min(first + size_px, len(filled))
    return slice(start, stop), slice(start - first, stop - first)

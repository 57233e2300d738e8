# SPDX-License-Identifier: Apache-2.0
"""Translate what a caller has: a file, a folder, a DICOM study, or an image in memory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from nibabel.spatialimages import SpatialImage

from contourdiff import bundle as bundle_folder
from contourdiff import parallel
from contourdiff.data.cases import TranslationCases
from contourdiff.data.inputs import is_url
from contourdiff.data.nifti import OUTPUT_SUFFIXES
from contourdiff.data.nifti_names import case_of, is_volume
from contourdiff.info import usable_device

DATALISTS = (".csv", ".json")


class Translation(NamedTuple):
    """Files of a translation."""

    case: str
    contrast: str | None
    """Where there are several."""
    mr: Path
    record: Path
    label: Path | None
    picture: Path | None
    ct: Path | None
    """The CT as NIfTI, where the input was not."""


def translate(
    ct: Any,
    label: Any = None,
    output: str | Path | None = None,
    *,
    contrast: str | Sequence[str] | None = None,
    anatomy: str | None = None,
    fast: bool = False,
    device: torch.device | str | None = None,
    seed: int = 0,
    case: str = "ct",
    **settings: Any,
) -> Any:
    """Translate one CT to MR, from memory or from a file, and return it as it was given.

    Args:
        ct: a path (a file, or a folder with a DICOM series), or an image of nibabel, SimpleITK or ITK, or a MetaTensor
            ``(H, W, D)`` or ``(1, H, W, D)``, in Hounsfield units.
        label: label of the CT, of the same kind and on its grid; shown in the picture and written beside the MR.
        output: file or folder to write to; without it nothing is kept.
        contrast: of the weights, ``"t1"`` or ``"t2"``; several (``"t1,t2"``) return a dictionary.
        anatomy: ``"lumbar"`` or ``"hip_thigh"``, the paper's settings.
        fast: 15 steps and a single candidate a slice.
        device: of torch; ``None`` takes a GPU if there is one.
        seed: another seed gives another MR of the same anatomy.
        case: name of an image in memory; the noise depends on it, as on the name of a file.
        settings: of ``inference.json``, and ``bundle`` and ``overlays`` as in [`contourdiff.bundle.translate`][].

    Returns the MR on the grid of ``ct``, gray levels from 0 to 255: an image of the same kind. For a path it is the
    path of the MR or, without ``output``, a nibabel image. Raises ``TypeError`` for another kind of image,
    ``ValueError`` for a bad image, label or setting, ``FileNotFoundError`` for a missing file.

    Example: ``mr = contourdiff.translate(sitk.ReadImage("ct.nrrd"), contrast="t2", fast=True)``.
    """
    given = isinstance(ct, (str, Path))
    options = {
        "contrast": contrast,
        "anatomy": anatomy,
        "fast": fast,
        "device": device,
        "seed": seed,
        **settings,
    }
    with TemporaryDirectory() as folder:
        if not given:
            label = (
                None if label is None else _write(label, Path(folder) / "labels" / f"{case}.nii.gz")
            )
            source = _write(ct, Path(folder) / f"{case}.nii.gz")
        target = Path(folder) / "mr" if output is None else output
        results = translate_path(
            ct if given else source, target, label=label, **{"progress": False, **options}
        )
        if given and output is not None:
            images: list[Any] = [result.mr for result in results]
        else:
            images = [_as_given(result.mr, None if given else ct) for result in results]
    if len(images) == 1:
        return images[0]
    return {result.contrast: image for result, image in zip(results, images, strict=True)}


def translate_path(
    source: str | Path,
    output: str | Path,
    *,
    label: str | Path | None = None,
    contrast: str | Sequence[str] | None = None,
    anatomy: str | None = None,
    fast: bool = False,
    weights: str | Path | None = None,
    device: torch.device | str | None = None,
    overlays: Sequence[str] = (),
    **settings: Any,
) -> list[Translation]:
    """Translate a file, a folder, a DICOM folder or the cases of a datalist, and return what was written.

    ``output`` is a folder, or, for a single case, a file (``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha``): label, record
    and picture are then named after it. ``series`` and ``format`` among the settings stand for ``series_uid`` and
    ``output_ext``; ``workers`` or ``scheduler`` share the cases as [`contourdiff.parallel.translate`][] does. Other
    arguments as in [`translate`][]; errors as in [`contourdiff.bundle.translate`][], which this calls, and
    ``ValueError`` if a file ``output`` exists and ``overwrite`` is not set.
    """
    settings = {"dataset_dir": source, **_selection(source, label), **settings}
    settings |= {} if contrast is None else {"contrast": contrast}
    settings |= {} if weights is None else {"ckpt_path": Path(weights)}
    settings |= {} if device is None else {"device": usable_device(device)}
    for short, name in (("series", "series_uid"), ("format", "output_ext"), ("bids", "bids_dir")):
        if short in settings:
            settings[name] = settings.pop(short)
    settings |= {
        name: Path(settings[name]) for name in ("bids_dir", "stats", "mr_dir") if settings.get(name)
    }
    cases = TranslationCases(settings["dataset_dir"], output, settings.get("datalist"))
    settings["datalist"] = cases.entries()  # headers of DICOM files are read once
    overlays = [*([anatomy] if anatomy else []), *(["fast"] if fast else []), *overlays]
    output = Path(output)
    suffix = next(
        (suffix for suffix in OUTPUT_SUFFIXES if output.name.lower().endswith(suffix)), None
    )
    if suffix is None:
        return _run(output, overlays, settings)
    if output.exists() and not settings.get("overwrite"):
        raise ValueError(
            f"expected no file at {output}, found one; pass --overwrite or another name"
        )
    if (count := len(settings["datalist"])) > 1:
        raise ValueError(
            f"expected a single case for the file {output}, got {count}; pass a folder"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=".contourdiff_") as folder:
        results = _run(Path(folder), overlays, {**settings, "output_ext": suffix})
        return [_named_after(result, output, suffix) for result in results]


def _run(folder: Path, overlays: Sequence[str], settings: dict[str, Any]) -> list[Translation]:
    """Translate to a folder, and list the files of the datalist's cases there."""
    run = (
        parallel.translate
        if "workers" in settings or "scheduler" in settings
        else bundle_folder.translate
    )
    run(output_dir=folder, overlays=overlays, **settings)
    contrasts, suffix = _contrasts(settings.get("contrast")), settings.get("output_ext", ".nii.gz")
    results = []
    for case in (case_of(entry["image"]) for entry in settings["datalist"]):
        for contrast in contrasts if len(contrasts) > 1 else [None]:
            base = f"{folder / case}{'' if contrast is None else f'_{contrast}'}"
            optional = (f"{base}_label{suffix}", f"{base}_mr.png", f"{folder}/ct/{case}.nii.gz")
            found = (Path(path) if Path(path).is_file() else None for path in optional)
            results.append(
                Translation(
                    case, contrast, Path(f"{base}_mr{suffix}"), Path(f"{base}_mr.json"), *found
                )
            )
    return results


def _selection(source: str | Path, label: str | Path | None) -> dict[str, Any]:
    """Settings that select the cases of an input; ``dataset_dir`` among them overrides the folder given.

    Names of files are paths, not text, which a config would evaluate where it begins with ``$``.
    """
    url = str(source) if is_url(source) else ""
    source = Path(source)
    if url:
        file = url.lower().endswith(OUTPUT_SUFFIXES)
        chosen: dict[str, Any] = (
            {"dataset_dir": url.rsplit("/", 1)[0], "datalist": [{"image": url}]} if file else {}
        )
        if label is not None and not file:
            raise ValueError(
                f"expected labels in {url}/labels, got a label beside the folder; leave out the label"
            )
    elif source.is_file() and source.suffix.lower() in DATALISTS:
        chosen = {"dataset_dir": source.parent, "datalist": Path(source.name)}
    elif is_volume(source) or (source.is_dir() and label is not None):
        chosen = {"dataset_dir": source.parent, "datalist": [{"image": Path(source.name)}]}
    elif source.is_dir():
        chosen = {}
    else:
        raise FileNotFoundError(
            f"expected a CT file (NIfTI, NRRD, MetaImage), a folder, DICOM or a datalist (CSV, JSON) at {source}, "
            f"found {'another kind of file' if source.exists() else 'nothing'}"
        )
    if label is not None:
        if source.suffix.lower() in DATALISTS:
            raise ValueError(
                "expected the labels in the datalist, got a label beside it; leave out the label"
            )
        if not Path(label).is_file():
            raise FileNotFoundError(
                f"expected a label at {label}, found none; pass another or leave it out"
            )
        chosen["datalist"][0]["label"] = Path(label).resolve()
    return chosen


def _contrasts(contrast: str | Sequence[str] | None) -> list[str]:
    names = contrast.split(",") if isinstance(contrast, str) else list(contrast or [])
    return [name.strip() for name in names]


def _named_after(result: Translation, output: Path, suffix: str) -> Translation:
    """Move the files of a result to the names that a single file asks for: ``mr.nii.gz``, ``mr_label.nii.gz`` ..."""
    base = result.record.name.removesuffix("_mr.json")
    stem = output.name[: -len(suffix)] + base.removeprefix(result.case)

    def move(path: Path, name: str) -> Path:
        return Path(shutil.move(path, output.with_name(f"{stem}{name}")))

    for name in (f"_fidelity{suffix}", f"_uncertainty{suffix}"):
        if (path := result.record.with_name(f"{base}{name}")).is_file():
            move(path, name)
    label, picture = (
        result.label and move(result.label, f"_label{suffix}"),
        result.picture and move(result.picture, ".png"),
    )
    ct = result.ct and Path(
        shutil.copy(result.ct, output.with_name(f"{output.name[: -len(suffix)]}_ct.nii.gz"))
    )
    record, mr = move(result.record, ".json"), move(result.mr, output.name[-len(suffix) :])
    return result._replace(mr=mr, record=record, label=label, picture=picture, ct=ct)


def _write(image: Any, path: Path) -> Path:
    """Write an image in memory as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, MetaTensor):
        data = image.as_tensor().cpu().numpy()
        image = nib.Nifti1Image(
            data[0] if data.ndim == 4 and len(data) == 1 else data, image.affine.cpu().numpy()
        )
    if isinstance(image, SpatialImage):
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine), path)
    elif isinstance(image, sitk.Image):
        sitk.WriteImage(image, str(path))
    elif type(image).__module__.startswith("itk"):
        import itk

        itk.imwrite(image, str(path))
    else:
        raise TypeError(
            f"expected a path, a nibabel, SimpleITK or ITK image or a MetaTensor, got {type(image)}"
        )
    return path


def _as_given(path: Path, like: Any) -> Any:
    """Read a translation as an image of the same kind and with the geometry of ``like``; ``None`` is nibabel's."""
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    if like is None:
        return nib.Nifti1Image(data, image.affine, image.header)
    if isinstance(like, MetaTensor):
        tensor = torch.as_tensor(data).reshape(like.shape)
        return MetaTensor(tensor, affine=like.affine.clone(), meta=dict(like.meta))
    if isinstance(like, SpatialImage):
        return nib.Nifti1Image(data, like.affine)
    voxels = np.ascontiguousarray(data.transpose())
    if isinstance(like, sitk.Image):
        mr = sitk.GetImageFromArray(voxels)
    else:
        import itk

        mr = itk.image_from_array(voxels)
    mr.CopyInformation(like)
    return mr

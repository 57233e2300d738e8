# SPDX-License-Identifier: Apache-2.0
"""Translate what a caller has: a file, a folder, a DICOM study, or an image in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from contourdiff import bundle, parallel
from contourdiff.data.atomic import copy_file
from contourdiff.data.case_files import CaseFiles, check_targets, converted_ct, read_record
from contourdiff.data.checks import check_output_dir
from contourdiff.data.inputs import Pair, Source, is_local_nifti, is_url, local_nifti
from contourdiff.data.label_files import masks_of
from contourdiff.data.memory_images import read_image, write_image
from contourdiff.data.nifti_names import OUTPUT_SUFFIXES, check_encoding, is_volume
from contourdiff.data.translation_cases import TranslationCases, contrast_names
from contourdiff.data.volumes import digest_of
from contourdiff.inference.summary import FailedCasesError, Row, read_run
from contourdiff.info import usable_device
from contourdiff.limits import SettingError

logger = logging.getLogger(__name__)

DATALISTS = (".csv", ".json")
DEFAULT_ANATOMY = "lumbar"
LONG_NAMES = {"series": "series_uid", "format": "output_ext", "bids": "bids_dir"}
PATHS = ("bids_dir", "stats", "mr_dir")


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
    status: str = "translated"
    """Or ``kept``, or ``failed``: then no file was written."""
    seconds: float | None = None
    error: str | None = None
    dicom: Path | None = None
    """Folder of MR and label as DICOM."""


def translate(
    ct: Any,
    label: Any = None,
    output: str | Path | None = None,
    *,
    contrast: str | Sequence[str] | None = None,
    anatomy: str | None = None,
    fast: bool | None = None,
    draft: bool = False,
    device: torch.device | str | None = None,
    seed: int = 0,
    case: str = "ct",
    **settings: Any,
) -> Any:
    """Translate one CT to MR, from memory or from a file, and return it as it was given.

    Args:
        ct: a path (a file, or a folder with a DICOM series), or an image of nibabel, SimpleITK or ITK, or a MetaTensor
            ``(H, W, D)`` or ``(1, H, W, D)``, in Hounsfield units.
        label: label of the CT, on its grid, a path or an image; shown in the picture and written beside the MR. A
            path may be a folder of masks, which become one label.
        output: file or folder to write to; without it nothing is kept.
        contrast: of the weights, ``"t1"``, ``"t2"`` or ``"t2_space"``; several (``"t1,t2"``) return a dictionary.
        anatomy: ``"lumbar"`` or ``"hip_thigh"``, the paper's settings.
        fast: 4 + 1 steps and a single candidate a slice; ``False``: the paper's 50 steps, and 4 candidates in up to 5
            rounds. ``None``: fast on a CPU.
        draft: 1 + 1 steps and a single candidate, for a first look; grayer.
        device: of torch; ``None`` takes a GPU if there is one.
        seed: of the noise; each seed gives a different MR of the same anatomy.
        case: name of an image in memory; the noise depends on it, as on the name of a file.
        settings: of ``inference.json``, and ``bundle`` and ``overlays`` as in
            [`contourdiff.bundle.run_inference_config`][].

    Returns:
        The MR on the grid of ``ct``, gray levels from 0 to 255: an image of the same kind. For a path it is the path
        of the MR or, without ``output``, a nibabel image.

    Raises:
        TypeError: for another kind of image.
        ValueError: for a bad image, label or setting.
        FileNotFoundError: for a missing file.

    Example: ``mr = contourdiff.translate(sitk.ReadImage("ct.nrrd"), contrast="t2", fast=True)``.
    """
    is_path = isinstance(ct, (str, Path))
    options: dict[str, Any] = {
        "progress": False,
        "contrast": contrast,
        "anatomy": anatomy,
        "fast": fast,
        "draft": draft,
        "device": device,
        "seed": seed,
        **settings,
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        source = ct
        if not is_path:
            source = write_image(ct, folder / f"{case}.nii.gz")
        if label is not None and not isinstance(label, (str, Path)):
            label = write_image(label, folder / "labels" / f"{case}.nii.gz")
        target = folder / "mr" if output is None else output
        with _shown({f"{folder}/": ""}):
            results = translate_path(source, target, label=label, **options)
        images: dict[str | None, Any] = {}
        for result in results:
            if is_path and output is not None:
                images[result.contrast] = result.mr
            else:
                images[result.contrast] = read_image(result.mr, None if is_path else ct)
    if len(images) == 1:
        return images.popitem()[1]
    return images


def translate_path(
    source: str | Path,
    output: str | Path,
    *,
    label: str | Path | None = None,
    contrast: str | Sequence[str] | None = None,
    anatomy: str | None = None,
    fast: bool | None = None,
    draft: bool = False,
    weights: str | Path | None = None,
    device: torch.device | str | None = None,
    overlays: Sequence[str] = (),
    **settings: Any,
) -> list[Translation]:
    """Translate a file, a folder, a DICOM folder or the cases of a datalist, and return what was written.

    Args:
        source: what to translate, see [`contourdiff.data.translation_cases.TranslationCases`][], or a single file.
        output: a folder, or, for a single case, a file (``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha``): label, record and
            picture are then named after it.
        label: of a single CT; a file, or a folder of masks such as TotalSegmentator's ``segmentations``.
        contrast: as ``anatomy``, ``fast``, ``draft`` and ``device`` in [`translate`][].
        anatomy: see there.
        fast: see there.
        draft: see there.
        weights: for the network of the bundle.
        device: see there.
        overlays: as ``settings`` in [`contourdiff.bundle.run_inference_config`][].
        settings: also ``series``, ``format`` and ``bids`` for ``series_uid``, ``output_ext`` and ``bids_dir``, where
            ``format="dicom"`` stands for ``save_dicom``; and ``workers`` or ``scheduler``, which share the cases as
            [`contourdiff.parallel`][] does.

    Raises:
        ValueError: if a file to write is the input or its label, or exists without ``overwrite`` and is not of the same
            translation; others as in [`contourdiff.bundle.run_inference_config`][].
        FailedCasesError: if a case failed, with the results of all.
    """
    run, pairs = run_settings(
        source,
        output,
        label=label,
        contrast=contrast,
        anatomy=anatomy,
        fast=fast,
        draft=draft,
        weights=weights,
        device=device,
        overlays=overlays,
        **settings,
    )
    return _translate_run(pairs, Path(output), source, run)


def run_settings(
    source: str | Path,
    output: str | Path,
    *,
    label: str | Path | None = None,
    contrast: str | Sequence[str] | None = None,
    anatomy: str | None = None,
    fast: bool | None = None,
    draft: bool = False,
    weights: str | Path | None = None,
    device: torch.device | str | None = None,
    overlays: Sequence[str] = (),
    **settings: Any,
) -> tuple[dict[str, Any], dict[str, Pair]]:
    """Settings of ``inference.json`` for arguments of [`translate_path`][], and the image and label of each case.

    None of them is read. The settings contain ``overlays``, and ``bundle``, ``workers`` or ``scheduler`` if passed.
    """
    run = {"dataset_dir": source, **_selection(source, label), **_long_names(settings)}
    if contrast is not None:
        run["contrast"] = contrast
    if weights is not None:
        run["ckpt_path"] = Path(weights)
    if device is not None:
        run["device"] = usable_device(device)
    speed = _speed(fast, draft, run.get("device"))
    run["overlays"] = _all_overlays(anatomy, speed, overlays)
    cases = TranslationCases(run["dataset_dir"], output, run.get("datalist"))
    pairs = cases.find()
    run["datalist"] = [_absolute_entry(*pair) for pair in pairs.values()]  # found once
    run["cases#notes"] = tuple(cases.notes)  # a config does not evaluate what a tuple holds
    return run, pairs


def _translate_run(
    pairs: Mapping[str, Pair], output: Path, source: str | Path, settings: dict[str, Any]
) -> list[Translation]:
    """Translate the cases of [`run_settings`][] to a folder, or a single one to a file; what was written."""
    if settings.get("stats"):
        _check_table(settings["stats"], source, pairs)
    for suffix in OUTPUT_SUFFIXES:
        if output.name.lower().endswith(suffix):
            _check_no_dicom(output, settings)
            return _translate_to_file(pairs, output, {**settings, "output_ext": suffix})
    failure = _run(output, settings)
    rows = _rows_of(output)
    results = []
    for case in pairs:
        ct = _existing(converted_ct(output, case))
        for contrast_name, files in _files_of(case, output, settings).items():
            row = rows.get(files.name, {})
            results.append(_translation(case, contrast_name, files, ct, row))
    return _checked(results, failure)


def _run(folder: Path, settings: dict[str, Any]) -> FailedCasesError | None:
    """Translate into a folder; the failure of some cases is returned."""
    try:
        if "workers" in settings or "scheduler" in settings:
            parallel.run_inference_config(output_dir=folder, **settings)
        else:
            bundle.run_inference_config(output_dir=folder, **settings)
    except FailedCasesError as failure:
        return failure
    return None


def _rows_of(folder: Path) -> dict[str, Row]:
    """What became of each translation to a folder, by its name."""
    return {row["case"]: row for row in read_run(folder).get("cases", [])}


def _checked(results: list[Translation], failure: FailedCasesError | None) -> list[Translation]:
    """The results, or the failure of some with all results."""
    if failure is not None:
        failure.results = results
        raise failure
    return results


@contextmanager
def _shown(names: Mapping[str, str]) -> Iterator[None]:
    """Replace texts, such as the path of a temporary folder, in the log and in errors."""

    def shown(text: Any) -> Any:
        if isinstance(text, str):
            for name, replacement in names.items():
                text = text.replace(name, replacement)
        return text

    def record_of(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = factory(*arguments, **options)
        record.msg, record.args = shown(record.getMessage()), None
        return record

    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(record_of)
    try:
        yield
    except (ValueError, OSError) as error:
        error.args = tuple(shown(argument) for argument in error.args)
        if isinstance(error, FailedCasesError):
            error.results = [result._replace(error=shown(result.error)) for result in error.results]
        raise
    finally:
        logging.setLogRecordFactory(factory)


def _check_table(table: str | Path, source: Source, pairs: Mapping[str, Pair]) -> None:
    """Raise ``ValueError`` if the table of cases would replace what is read."""
    read = [source]
    for pair in pairs.values():
        read += filter(None, pair)
    check_targets([Path(table)], read)


def _check_no_dicom(output: Path, settings: Mapping[str, Any]) -> None:
    if settings.get("save_dicom"):
        raise SettingError(f"expected a folder to write DICOM to, got the file {output}; pass one")


def _translate_to_file(
    pairs: Mapping[str, Pair], output: Path, settings: dict[str, Any]
) -> list[Translation]:
    """Translate a single case in a hidden folder, and move its files to the names that the file asks for.

    What an earlier call finished is linked there before, so that it is kept as in any folder.
    """
    if len(pairs) > 1:
        raise ValueError(
            f"expected a single case for the file {output}, got {len(pairs)}; pass a folder"
        )
    ((case, (image, label)),) = pairs.items()
    length = len(settings["output_ext"])
    stem, extension = output.name[:-length], output.name[-length:]
    check_output_dir(output.parent)
    check_encoding(output)
    ct = None if is_local_nifti(image) else output.with_name(f"{stem}_ct.nii.gz")
    results = []
    with TemporaryDirectory(dir=output.parent, prefix=".contourdiff_") as name:
        folder = Path(name)
        targets: dict[str | None, CaseFiles] = {}
        names: dict[str, str] = {}
        new: list[Path] = []
        hidden = _files_of(case, folder, settings)
        for contrast, files in hidden.items():
            file_stem = stem if contrast is None else f"{stem}_{contrast}"
            target = CaseFiles(output.parent, file_stem, extension, mr_ending="")
            targets[contrast] = target
            names[str(files.mr)] = str(target.mr)
            record = _finished(target, case, image, folder, settings)
            if record is None:
                new += [target.mr, target.fidelity, target.uncertainty]
                new += [target.picture, target.record]
            else:
                target.link_to(files)
            if record is None or record["label"] is None:
                new += _label_files(target, label)
        if ct is not None and new:
            new.append(ct)
        read = [image] if label is None else [image, label]
        check_targets(new, read, overwrite=settings.get("overwrite", False))
        names[str(folder)] = str(output.parent)
        with _shown(names):
            failure = _run(folder, settings)
            rows = _rows_of(folder)
            if ct is not None and converted_ct(folder, case).is_file():
                copy_file(converted_ct(folder, case), ct)
            for contrast, files in hidden.items():
                row = rows.get(files.name, {})
                if row.get("status") != "failed":
                    if targets[contrast].record in new:
                        targets[contrast].remove_old(with_label=label is not None)
                    files.move_to(targets[contrast])
                ct_file = None if ct is None else _existing(ct)
                results.append(_translation(case, contrast, targets[contrast], ct_file, row))
            return _checked(results, failure)


def _label_files(files: CaseFiles, label: Source | None) -> list[Path]:
    if label is None:
        return []
    return [files.label, files.classes] if masks_of(Path(label)) else [files.label]


def _finished(
    target: CaseFiles, case: str, image: Source, folder: Path, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Record of a translation of this image to this contrast that is there already and to be kept, or ``None``."""
    record = None if settings.get("overwrite") else read_record(target.record)
    if record is None or not target.mr.is_file() or record["case"] != case:
        return None
    contrasts = contrast_names(settings.get("contrast"))
    if len(contrasts) == 1 and record["settings"].get("contrast", contrasts[0]) != contrasts[0]:
        return None
    try:
        nifti = local_nifti(image, folder / "compared.nii.gz", settings.get("series_uid"))
        same = digest_of(nifti) == record.get("image_sha256")
    except (OSError, ValueError):
        return None
    return record if same else None


def _files_of(case: str, folder: Path, settings: dict[str, Any]) -> dict[str | None, CaseFiles]:
    """Files of a case by contrast, which is ``None`` where there is a single one."""
    extension = settings.get("output_ext", ".nii.gz")
    contrasts = contrast_names(settings.get("contrast"))
    if len(contrasts) > 1:
        return {name: CaseFiles(folder, f"{case}_{name}", extension) for name in contrasts}
    return {None: CaseFiles(folder, f"{case}{settings.get('case_suffix', '')}", extension)}


def _translation(
    case: str, contrast: str | None, files: CaseFiles, ct: Path | None, row: Mapping[str, Any]
) -> Translation:
    """Files of a translation, and what its row of the run says."""
    label, picture = _existing(files.label), _existing(files.picture)
    outcome = {name: row[name] for name in ("status", "seconds", "error") if name in row}
    dicom = files.dicom if files.dicom.is_dir() else None
    return Translation(
        case, contrast, files.mr, files.record, label, picture, ct, dicom=dicom, **outcome
    )


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _long_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``inference.json`` for their short names; paths are no text, which a config would evaluate."""
    long: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "format" and value == "dicom":
            long["save_dicom"] = True
            continue
        long_name = LONG_NAMES.get(name, name)
        long[long_name] = Path(value) if long_name in PATHS and value else value
    return long


def _speed(fast: bool | None, draft: bool, device: torch.device | None) -> str | None:
    """The overlay ``fast`` or ``draft``, or ``None`` for the paper's setting."""
    if draft:
        if fast is not None:
            raise SettingError("expected fast or draft, got both; pass one")
        return "draft"
    if fast is not None:
        return "fast" if fast else None
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    if on_gpu:
        return None
    logger.info(
        "on a CPU --fast is the default, 4 + 1 steps and one candidate a slice; --full (fast=False) is the paper's"
    )
    return "fast"


def _all_overlays(anatomy: str | None, speed: str | None, overlays: Sequence[str]) -> list[str]:
    names = list(overlays)
    if speed is not None:
        names.insert(0, speed)
    if anatomy is not None and anatomy != DEFAULT_ANATOMY:
        names.insert(0, anatomy)
    return names


def _absolute_entry(image: Source, label: Source | None) -> dict[str, Source]:
    """Entry of a datalist; names of files are paths, as a config would evaluate text that begins with ``$``."""
    entry = {"image": image if is_url(image) else Path(image).absolute()}
    if label is not None:
        entry["label"] = label if is_url(label) else Path(label).absolute()
    return entry


def _selection(source: str | Path, label: str | Path | None) -> dict[str, Any]:
    """``dataset_dir`` and ``datalist`` for an input; none for a folder as it is."""
    if label is not None and not Path(label).is_file() and not masks_of(Path(label)):
        raise FileNotFoundError(
            f"expected a label at {label}, or a folder of masks, found none; pass another or leave it out"
        )
    path = Path(source)
    is_datalist = path.is_file() and path.suffix.lower() in DATALISTS
    if is_url(source):
        is_single = str(source).lower().endswith(OUTPUT_SUFFIXES)
    else:
        is_single = is_volume(path) or (path.is_dir() and label is not None)
        if not is_single and not is_datalist and not path.is_dir():
            raise FileNotFoundError(
                f"expected a CT file (NIfTI, NRRD, MetaImage), a folder, DICOM or a datalist (CSV, JSON) at {path}, "
                f"found {'another kind of file' if path.exists() else 'nothing'}"
            )
    if is_single:
        entry = {"image": source if is_url(source) else Path(path.name)}
        if label is not None:
            entry["label"] = Path(label).resolve()
        folder = str(source).rsplit("/", 1)[0] if is_url(source) else path.parent
        return {"dataset_dir": folder, "datalist": [entry]}
    if label is not None:
        place = "in the datalist" if is_datalist else f"in {source}/labels"
        raise ValueError(f"expected the labels {place}, got a label beside it; leave out the label")
    return {"dataset_dir": path.parent, "datalist": Path(path.name)} if is_datalist else {}

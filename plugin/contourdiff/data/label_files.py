# SPDX-License-Identifier: Apache-2.0
"""Which label belongs to which case, by the names of files, and masks of a folder as one label."""

from __future__ import annotations

import difflib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from contourdiff.data.atomic import write_json
from contourdiff.data.case_files import CaseFiles
from contourdiff.data.checks import check_label
from contourdiff.data.dicom import is_dicom
from contourdiff.data.nifti import save_like
from contourdiff.data.nifti_names import (
    case_of,
    check_name,
    is_volume,
    printable,
)
from contourdiff.data.volumes import release_voxels, scaled_voxels

MASKS = "segmentations"
"""Folder of TotalSegmentator's masks."""
DETACHED = (".raw", ".zraw")
"""Voxels of a ``.mhd``, which names them."""
CHANNEL = "_0000"
"""What nnU-Net has behind the case in the name of its first image, and not in that of the label."""
SEGMENTATION = ".seg"
"""What 3D Slicer has behind the case in the name of a segmentation, ``a.seg.nrrd``."""
DICOM = ".dcm"
PARTS = """
spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left
lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right
esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right
sacrum vertebrae_S1 vertebrae_L5 vertebrae_L4 vertebrae_L3 vertebrae_L2 vertebrae_L1 vertebrae_T12 vertebrae_T11
vertebrae_T10 vertebrae_T9 vertebrae_T8 vertebrae_T7 vertebrae_T6 vertebrae_T5 vertebrae_T4 vertebrae_T3 vertebrae_T2
vertebrae_T1 vertebrae_C7 vertebrae_C6 vertebrae_C5 vertebrae_C4 vertebrae_C3 vertebrae_C2 vertebrae_C1 heart aorta
pulmonary_vein brachiocephalic_trunk subclavian_artery_right subclavian_artery_left common_carotid_artery_right
common_carotid_artery_left brachiocephalic_vein_left brachiocephalic_vein_right atrial_appendage_left
superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right
iliac_vena_left iliac_vena_right humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right
femur_left femur_right hip_left hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right gluteus_medius_left
gluteus_medius_right gluteus_minimus_left gluteus_minimus_right autochthon_left autochthon_right iliopsoas_left
iliopsoas_right brain skull rib_left_1 rib_left_2 rib_left_3 rib_left_4 rib_left_5 rib_left_6 rib_left_7 rib_left_8
rib_left_9 rib_left_10 rib_left_11 rib_left_12 rib_right_1 rib_right_2 rib_right_3 rib_right_4 rib_right_5 rib_right_6
rib_right_7 rib_right_8 rib_right_9 rib_right_10 rib_right_11 rib_right_12 sternum costal_cartilages
"""
TOTAL = {name: value for value, name in enumerate(PARTS.split(), start=1)}
"""Classes of TotalSegmentator 2, task ``total``, with the values of its own multi-label files."""


def match_labels(cases: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Names of label files by case, as [`case_of`][contourdiff.data.nifti_names.case_of] reads it.

    The same name comes first; then ``a.seg.nrrd`` or ``a`` for ``a_0000``, and another Unicode form of the same text.
    Where such a name fits several cases it belongs to none.

    Raises:
        ValueError: if two labels fit a case.

    Examples:
        >>> match_labels(["a_0000", "b"], ["a.nii.gz", "b.seg.nrrd", "B.nii.gz"])
        {'a_0000': 'a.nii.gz', 'b': 'b.seg.nrrd'}
    """
    by_case: dict[str, str] = {}
    unused = sorted(names)
    cases = list(cases)
    for case_key, label_key in ((str, case_of), (_key_of_case, _key_of_label)):
        without_label = [case for case in cases if case not in by_case]
        labels_by_key = _by_key(unused, label_key)
        for key, same_key in _by_key(without_label, case_key).items():
            labels = labels_by_key.get(key, [])
            case = same_key[0]
            if len(labels) > 1:
                raise ValueError(
                    f"expected one label for the case {printable(case)}, got {labels}; remove the others"
                )
            if labels and len(same_key) == 1:
                by_case[case] = labels[0]
        unused = [name for name in unused if name not in by_case.values()]
    return by_case


def _by_key(names: Iterable[str], key_of: Callable[[str], str]) -> dict[str, list[str]]:
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in names:
        key = key_of(name)
        by_key[key].append(name)
    return by_key


def _key_of_case(case: str) -> str:
    return unicodedata.normalize("NFC", case.removesuffix(CHANNEL))


def _key_of_label(name: str) -> str:
    case = case_of(name).removesuffix(SEGMENTATION).removesuffix(DICOM)
    return unicodedata.normalize("NFC", case)


def unused_warning(place: str, name: str, cases: Sequence[str]) -> str:
    """What is to be said of a file among the labels that belongs to no case: with the nearest name of one."""
    nearest = difflib.get_close_matches(case_of(name), cases, n=1, cutoff=0.0)[0]
    suffix = name[len(case_of(name)) :] or ".nii.gz"
    expected = printable(f"{nearest.removesuffix(CHANNEL)}{suffix}")
    return (
        f"{place}/{printable(name)} belongs to no case, and is not used: "
        f"expected the name of one, such as {expected}; rename it"
    )


def label_entries(folder: Path) -> dict[str, Path]:
    """All that is in a folder of labels, by name: files, and folders of masks; no hidden files."""
    entries: dict[str, Path] = {}
    if not folder.is_dir():
        return entries
    for path in sorted(folder.iterdir()):
        voxels_of_another = path.suffix.lower() in DETACHED and path.with_suffix(".mhd").is_file()
        if not path.name.startswith(".") and not voxels_of_another:
            entries[path.name] = path
    return entries


def masks_of(folder: Path) -> dict[str, Path]:
    """Masks in a folder, or in its folder ``segmentations``, by name; empty if there are none, or for a file.

    Raises ``ValueError`` for two files of one name.
    """
    masks: dict[str, Path] = {}
    for place in (folder, folder / MASKS):
        if masks or not place.is_dir():
            continue
        for path in sorted(filter(is_volume, place.iterdir())):
            name = case_of(path)
            if name in masks:
                got = [masks[name].name, path.name]
                raise ValueError(f"expected one mask a name in {place}, got {got}; remove one")
            masks[name] = path
    return masks


def is_label(path: Path) -> bool:
    """Whether a path is a label: named as a volume, a folder of masks, or DICOM."""
    if is_volume(path) or bool(masks_of(path)):
        return True
    return is_dicom(path)


def class_values(names: Iterable[str]) -> dict[str, int]:
    """Value of each mask in a joined label: TotalSegmentator's, and for other names the next ones in their order.

    Examples:
        >>> class_values(["vertebrae_L5", "disc"]), class_values(["bone", "disc"])
        ({'vertebrae_L5': 27, 'disc': 118}, {'bone': 1, 'disc': 2})
    """
    values = {}
    others = []
    for name in sorted(names):
        if name in TOTAL:
            values[name] = TOTAL[name]
        else:
            others.append(name)
    first = len(TOTAL) + 1 if values else 1
    for value, name in enumerate(others, start=first):
        values[name] = value
    return values


def check_classes(labels: Iterable[Path]) -> None:
    """Raise ``ValueError`` if the masks of two cases would give one value two names."""
    seen: dict[int, tuple[str, Path]] = {}
    for label in labels:
        for name, value in class_values(masks_of(label)).items():
            other, place = seen.setdefault(value, (name, label))
            if other != name:
                raise ValueError(
                    f"expected the same masks for each case, got {other} in {place} and {name} in {label} "
                    f"for the value {value}; add masks of zeros, or leave masks out"
                )


def join_masks(folder: Path, image: Path, path: Path) -> dict[int, str]:
    """Write the masks of a folder as one label on the grid of ``image``; value -> name of each class.

    Raises:
        ValueError: for a mask that is on another grid or has several values, or two that share a voxel.
    """
    masks = masks_of(folder)
    values = class_values(masks)
    names = {value: name for name, value in values.items()}
    joined: np.ndarray | None = None
    for name, file in masks.items():
        check_name(file)
        voxels = check_label(image, file)
        release_voxels([file])
        inside = voxels != 0
        present = np.unique(voxels)
        if np.count_nonzero(present) > 1:
            raise ValueError(
                f"expected a mask of 0 and 1 in {file}, got {len(present)} values; pass a label of several classes "
                "as one file"
            )
        if joined is None:
            smallest_type = np.min_scalar_type(max(names))
            joined = np.zeros(inside.shape, smallest_type)
        shared = joined[inside]
        if shared.any():
            other = names[int(shared.max())]
            raise ValueError(
                f"expected masks that share no voxel in {folder}, got {np.count_nonzero(shared)} in {name} "
                f"and {other}; leave one of them out"
            )
        joined[inside] = values[name]
    if joined is not None:
        save_like(joined, image, path)
    return dict(sorted(names.items()))


def write_label(label: Path, files: CaseFiles, classes: Mapping[int, str] | None) -> None:
    """Write the label of a translation, voxel for voxel, and beside it the names of its values where they are known."""
    if classes is not None:
        names = {str(value): name for value, name in classes.items()}
        write_json(files.classes, {"classes": names})
    save_like(scaled_voxels(label), label, files.label)

# SPDX-License-Identifier: Apache-2.0
"""Kinds of bad volumes: each is a function that puts one case of its name into a folder."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from helpers.dicom import write_series
from helpers.volumes import OBLIQUE, ball_ct, write_nifti

Build = Callable[[Path, str], Any]
SHAPE = (6, 20, 18)
CT = ball_ct(SHAPE)
LABEL = (CT > 200).astype(np.uint8) * 27


class Kind(NamedTuple):
    """A builder, the case that it makes, and a pattern of its refusal; ``None`` where the case is translated.

    ``label`` is the name of its label, where that is not the one of the case.
    """

    build: Build
    case: str
    refusal: str | None
    label: str | None = None


KINDS: dict[str, Kind] = {}
IGNORED: list[Build] = []
"""Builders of what is no case at all."""


def accepted(case: str | None = None) -> Callable[[Build], Build]:
    """Register a kind that is translated, grid and label exact."""
    return _register(case, None)


def refused(pattern: str, case: str | None = None) -> Callable[[Build], Build]:
    """Register a kind that is refused with a line that matches ``pattern``."""
    return _register(case, pattern)


def _register(case: str | None, refusal: str | None) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        name = build.__name__
        KINDS[name] = Kind(build, case or name, refusal)
        return build

    return register


def volume(
    folder: Path, name: str, data: np.ndarray = CT, affine: np.ndarray = OBLIQUE, **header: Any
) -> Path:
    """Write ``<name>.nii``, with raw values of header fields, past all checks of nibabel."""
    path = folder / f"{name}.nii"
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    image.set_sform(affine, 2)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return patch(path, **header)


def patch(path: Path, **header: Any) -> Path:
    """Overwrite fields of the header of ``*.nii``."""
    raw = bytearray(path.read_bytes())
    fields = np.frombuffer(raw, dtype=nib.Nifti1Header.template_dtype, count=1)
    for field, value in header.items():
        fields[field] = value
    path.write_bytes(bytes(raw))
    return path


def label(folder: Path, name: str, data: np.ndarray = LABEL, affine: np.ndarray = OBLIQUE) -> Path:
    """Write the label of a case, beside a good CT."""
    write_nifti(folder / f"{name}.nii.gz", CT, OBLIQUE)
    return write_nifti(folder / "labels" / f"{name}.nii.gz", data, affine)


# Files

UNREADABLE = "expected a readable NIfTI file at "
NOTHING = "expected slices with a contour, got none in [0-9]+ slices: .* min_object_mm2"


@refused(UNREADABLE)
def truncated_gz(folder: Path, name: str) -> None:
    path = write_nifti(folder / f"{name}.nii.gz", CT, OBLIQUE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@refused("expected a whole file, but truncated_nii.nii of [0-9]+ bytes claims 4320 bytes of voxels")
def truncated_nii(folder: Path, name: str) -> None:
    path = volume(folder, name)
    path.write_bytes(path.read_bytes()[:3000])


@refused(UNREADABLE)
def cut_in_the_header(folder: Path, name: str) -> None:
    path = volume(folder, name)
    path.write_bytes(path.read_bytes()[:200])


@refused(UNREADABLE)
def empty_file(folder: Path, name: str) -> None:
    (folder / f"{name}.nii.gz").touch()


@refused(UNREADABLE)
def empty_nii(folder: Path, name: str) -> None:
    (folder / f"{name}.nii").touch()


@refused(UNREADABLE)
def random_gz(folder: Path, name: str) -> None:
    (folder / f"{name}.nii.gz").write_bytes(np.random.default_rng(0).bytes(5000))


@refused(UNREADABLE)
def random_nii(folder: Path, name: str) -> None:
    (folder / f"{name}.nii").write_bytes(np.random.default_rng(1).bytes(5000))


@refused(UNREADABLE)
def random_zipped(folder: Path, name: str) -> None:
    (folder / f"{name}.nii.gz").write_bytes(gzip.compress(np.random.default_rng(2).bytes(5000)))


@refused(UNREADABLE)
def text_as_gz(folder: Path, name: str) -> None:
    (folder / f"{name}.nii.gz").write_text("this is no image\n" * 50)


@refused(UNREADABLE)
def zipped_nothing(folder: Path, name: str) -> None:
    (folder / f"{name}.nii.gz").write_bytes(gzip.compress(b""))


@refused(
    "expected a whole file, but claims_too_much.nii.gz of [0-9]+ bytes claims 21600000000 bytes"
)
def claims_too_much(folder: Path, name: str) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((30000, 30000, 12))
    (folder / f"{name}.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4)))


@refused(
    "expected a volume that fits into memory, got larger_than_memory.nii of shape .* GB or more of"
)
def larger_than_memory(folder: Path, name: str) -> None:
    path = volume(
        folder,
        name,
        affine=np.eye(4),
        dim=(3, 30000, 30000, 5000, 1, 1, 1, 1),
        pixdim=(1, 0.01, 0.01, 0.01, 0, 0, 0, 0),
    )
    patch(path, srow_x=(0.01, 0, 0, 0), srow_y=(0, 0.01, 0, 0), srow_z=(0, 0, 0.01, 0))
    os.truncate(path, 352 + 2 * 30000 * 30000 * 5000)  # a file with holes takes no disk


@refused(UNREADABLE)
def wrong_checksum(folder: Path, name: str) -> None:
    path = write_nifti(folder / f"{name}.nii.gz", CT, OBLIQUE)
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 255
    path.write_bytes(bytes(raw))


@refused(UNREADABLE)
def nii_named_gz(folder: Path, name: str) -> None:
    volume(folder, name).rename(folder / f"{name}.nii.gz")


@refused(UNREADABLE)
def gz_named_nii(folder: Path, name: str) -> None:
    write_nifti(folder / f"{name}.nii.gz", CT, OBLIQUE).rename(folder / f"{name}.nii")


@accepted()
def half_of_a_pair(folder: Path, name: str) -> None:
    volume(folder, name, magic=b"ni1")


@refused("expected a readable NIfTI file at .*no such file")
def link_to_nothing(folder: Path, name: str) -> None:
    (folder / f"{name}.nii.gz").symlink_to(folder / "nowhere.nii.gz")


@accepted()
def link_out_of_the_folder(folder: Path, name: str) -> None:
    outside = write_nifti(folder.parent / "elsewhere" / "real.nii.gz", CT, OBLIQUE)
    (folder / f"{name}.nii.gz").symlink_to(outside)


@accepted("UP")
def upper_case(folder: Path, name: str) -> None:
    write_nifti(folder / "UP.nii.gz", CT, OBLIQUE).rename(folder / "UP.NII.GZ")


@refused("expected a readable volume at .*broken.nrrd, got: ", "broken")
def broken_nrrd(folder: Path, name: str) -> None:
    (folder / "broken.nrrd").write_text("NRRD0004\ntype: short\ndimension: 3\nsizes: 6 20 18\n\n")


@refused("expected a readable volume at ", "voxels")
def metaimage_without_voxels(folder: Path, name: str) -> None:
    lines = ("ObjectType = Image", "NDims = 3", "DimSize = 6 20 18", "ElementType = MET_SHORT")
    (folder / "voxels.mhd").write_text(
        "\n".join([*lines, "ElementDataFile = ../../../nowhere.raw"])
    )


def named(case: str, refusal: str | None = None) -> None:
    """A good volume with a strange name."""

    def build(folder: Path, name: str) -> None:
        write_nifti(folder / "tmp.nii.gz", CT, OBLIQUE).rename(folder / f"{case}.nii.gz")

    KINDS[f"named {case!a}"] = Kind(build, case if refusal is None else ascii(case), refusal)


for strange in (
    'it\'s "a" case',
    "-rf",
    "<b>&amp;<script>",
    "$1+1",
    "@seed",
    "%s#1",
    "a b.c",
    "größe",
    "x" * 200,
    "x" * 230,
    "_mr",
):
    named(strange)
named(
    "two\nlines",
    "expected a name without control characters and special spaces, got .two.nlines.nii.gz.; rename",
)
named("red\x1b[31m", "expected a name without control characters")
named("no-break\xa0space", "expected a name without control characters and special spaces")


@refused("expected names of 255 bytes or less, got 256 for x.*; shorten the name", "x" * 237)
def longer_than_file_systems_allow(folder: Path, name: str) -> None:
    write_nifti(folder / "tmp.nii.gz", CT, OBLIQUE).rename(folder / f"{'x' * 237}.nii.gz")


@refused("expected the suffix .nii.gz in lower case, got Mixed.Nii.gz; rename", "Mixed")
def mixed_case(folder: Path, name: str) -> None:
    write_nifti(folder / "tmp.nii.gz", CT, OBLIQUE).rename(folder / "Mixed.Nii.gz")


@refused("expected the suffix .mha in lower case, got LOUD.MHA; rename", "LOUD")
def upper_case_mha(folder: Path, name: str) -> None:
    (folder / "LOUD.MHA").write_bytes(b"ObjectType = Image")


@refused(r"expected a path in UTF-8, got .*bad.udcff.nii.gz'; rename the file", ascii("bad\udcff"))
def name_that_is_not_utf8(folder: Path, name: str) -> None:
    write_nifti(folder / "tmp.nii.gz", CT, OBLIQUE).rename(folder / "bad\udcff.nii.gz")


@refused(r"expected a path in UTF-8, got .*study.udcff'; rename", ascii("study\udcff"))
def dicom_in_a_folder_that_is_not_utf8(folder: Path, name: str) -> None:
    write_series(folder / "study\udcff", CT)


@refused(r"expected a path in UTF-8, got .*slice.udcff'; rename", "slices")
def dicom_of_files_that_are_not_utf8(folder: Path, name: str) -> None:
    for path in write_series(folder / "slices", CT).iterdir():
        path.rename(path.with_name(f"{path.name} slice\udcff"))


@refused(r"expected a path in UTF-8, got .*noted.udcff.nrrd'; rename", ascii("noted\udcff"))
def nrrd_that_is_not_utf8(folder: Path, name: str) -> None:
    (folder / "noted\udcff.nrrd").write_text("NRRD0004")


@IGNORED.append
def hidden(folder: Path) -> None:
    (folder / ".hidden.nii.gz").write_bytes(b"no image")


@IGNORED.append
def pair(folder: Path) -> None:
    nib.save(nib.Nifti1Pair(CT, OBLIQUE), folder / "pair.img")


@IGNORED.append
def folder_named_nii(folder: Path) -> None:
    (folder / "folder.nii.gz").mkdir()


@IGNORED.append
def fifo(folder: Path) -> None:
    os.mkfifo(folder / "fifo.nii.gz")


# Headers


@refused(r"expected a volume \(H, W, D\) in two_dimensions.nii, got shape \(20, 18\)")
def two_dimensions(folder: Path, name: str) -> None:
    volume(folder, name, CT[0])


@refused(r"got shape \(6, 20, 18, 2\)")
def four_dimensions(folder: Path, name: str) -> None:
    volume(folder, name, np.stack([CT] * 2, axis=-1))


@refused(r"got shape \(6, 0, 18\)")
def zero_size(folder: Path, name: str) -> None:
    volume(folder, name, dim=(3, 6, 0, 18, 1, 1, 1, 1))


@refused("zero_dimensions")
def zero_dimensions(folder: Path, name: str) -> None:
    volume(folder, name, dim=(0, 6, 20, 18, 1, 1, 1, 1))


@refused("negative_size")
def negative_size(folder: Path, name: str) -> None:
    volume(folder, name, dim=(3, 6, -20, 18, 1, 1, 1, 1))


@refused(UNREADABLE)
def unknown_datatype(folder: Path, name: str) -> None:
    volume(folder, name, datatype=999)


@refused(UNREADABLE)
def offset_beyond_the_end(folder: Path, name: str) -> None:
    volume(folder, name, vox_offset=1e6)


@refused("expected one number a voxel in rgb.nii, got RGB")
def rgb(folder: Path, name: str) -> None:
    volume(folder, name, np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))


@refused("expected one number a voxel in complex_numbers.nii, got complex64")
def complex_numbers(folder: Path, name: str) -> None:
    volume(folder, name, CT.astype(np.complex64))


def typed(dtype: str) -> None:
    """A volume of a data type, as small numbers where it holds no HU."""

    def build(folder: Path, name: str) -> None:
        data = CT if np.can_cast(np.int16, dtype) else np.clip(CT, 0, 120)
        image = nib.Nifti1Image(
            data.astype(dtype), OBLIQUE, dtype=np.dtype(dtype).newbyteorder("=")
        )
        if dtype.startswith(">"):
            image = nib.Nifti1Image(image.dataobj, OBLIQUE, nib.Nifti1Header(endianness=">"))
            image.set_data_dtype(dtype)
        image.set_sform(OBLIQUE, 2)
        nib.save(image, folder / f"{name}.nii.gz")

    KINDS[f"dtype_{dtype.replace('>', 'big_endian_')}"] = Kind(
        build, f"dtype_{dtype.replace('>', 'big_endian_')}", None
    )


for one in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4"):
    typed(one)


@accepted()
def nifti_2(folder: Path, name: str) -> None:
    nib.save(nib.Nifti2Image(CT, OBLIQUE), folder / f"{name}.nii.gz")


@accepted()
def slope_nan(folder: Path, name: str) -> None:
    volume(folder, name, scl_slope=np.nan, scl_inter=np.nan)


@accepted()
def slope_zero(folder: Path, name: str) -> None:
    volume(folder, name, scl_slope=0, scl_inter=7)


@accepted()
def slope_and_intercept(folder: Path, name: str) -> None:
    volume(folder, name, (CT + 1024).astype(np.uint16), scl_slope=1, scl_inter=-1024)


@refused(UNREADABLE)
def intercept_infinite(folder: Path, name: str) -> None:
    volume(folder, name, scl_slope=1, scl_inter=np.inf)


@refused("expected finite voxels in slope_huge.nii")
def slope_huge(folder: Path, name: str) -> None:
    volume(folder, name, (CT.astype(np.float64) * 1e300), scl_slope=1e38)


@accepted()
def no_form_at_all(folder: Path, name: str) -> None:
    volume(folder, name, sform_code=0, qform_code=0)


@accepted()
def qform_only(folder: Path, name: str) -> None:
    volume(folder, name, sform_code=0)


@accepted()
def sform_only(folder: Path, name: str) -> None:
    volume(folder, name, qform_code=0)


def sheared(affine: np.ndarray, row: int, column: int, amount: float = 0.35) -> np.ndarray:
    shear = np.eye(4)
    shear[row, column] = amount
    return affine @ shear


def shear_kind(row: int, column: int, qform: bool) -> None:
    def build(folder: Path, name: str) -> None:
        image = nib.Nifti1Image(CT, OBLIQUE)
        image.set_qform(OBLIQUE, int(qform))
        image.set_sform(sheared(OBLIQUE, row, column), 2)
        nib.save(image, folder / f"{name}.nii.gz")

    name = f"shear_{row}{column}_{'with_qform' if qform else 'alone'}"
    KINDS[name] = Kind(build, name, None)


for row, column in ((0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)):
    for qform in (True, False):
        shear_kind(row, column, qform)


@accepted()
def forms_that_disagree(folder: Path, name: str) -> None:
    image = nib.Nifti1Image(CT, OBLIQUE)
    image.set_sform(np.diag([-2.0, 2.0, 3.0, 1.0]), 1)
    image.set_qform(OBLIQUE, 1)
    nib.save(image, folder / f"{name}.nii.gz")


@accepted()
def sform_mirrored(folder: Path, name: str) -> None:
    image = nib.Nifti1Image(CT, OBLIQUE)
    image.set_sform(OBLIQUE @ np.diag([-1, 1, 1, 1]), 1)
    image.set_qform(OBLIQUE, 1)
    nib.save(image, folder / f"{name}.nii.gz")


@refused("expected an invertible affine in singular.nii")
def singular(folder: Path, name: str) -> None:
    volume(folder, name, srow_x=(1, 1, 1, 0), srow_y=(1, 1, 1, 0), srow_z=(1, 1, 1, 0))


@refused("expected an invertible affine in nan_affine.nii")
def nan_affine(folder: Path, name: str) -> None:
    volume(folder, name, srow_x=(np.nan, 0, 0, 0))


@accepted()
def pixdim_negative(folder: Path, name: str) -> None:
    volume(folder, name, pixdim=(1, -3, -2.5, -4, 0, 0, 0, 0))


@accepted()
def pixdim_zero_with_sform(folder: Path, name: str) -> None:
    volume(folder, name, pixdim=np.zeros(8))


@accepted()
def pixdim_zero_alone(folder: Path, name: str) -> None:
    volume(folder, name, pixdim=np.zeros(8), sform_code=0)


@refused("pixdim_nan_alone")
def pixdim_nan_alone(folder: Path, name: str) -> None:
    volume(folder, name, pixdim=np.full(8, np.nan), sform_code=0)


@refused("expected a grid in mm in meters.nii, got meters")
def meters(folder: Path, name: str) -> None:
    volume(folder, name, affine=np.diag([0.003, 0.0025, 0.004, 1]), xyzt_units=1)


@refused("expected a grid in mm in microns.nii, got microns")
def microns(folder: Path, name: str) -> None:
    volume(folder, name, affine=np.diag([50.0, 50, 50, 1]), xyzt_units=3)


@accepted()
def unit_unknown(folder: Path, name: str) -> None:
    volume(folder, name, xyzt_units=0)


@refused("expected a volume of 10 m or less, got 20 m in voxels_of_a_meter.nii")
def voxels_of_a_meter(folder: Path, name: str) -> None:
    volume(folder, name, affine=np.diag([1000.0, 1000, 1000, 1]))


@refused("the largest slice of the body has 1 mm2, and min_object_mm2 is 100; lower min_object_mm2")
def voxels_of_a_twentieth_mm(folder: Path, name: str) -> None:
    volume(folder, name, affine=np.diag([0.05, 0.05, 0.05, 1]))


@accepted()
def voxels_of_50_mm(folder: Path, name: str) -> None:
    volume(folder, name, CT[:3, :12, :10], affine=np.diag([50.0, 50, 50, 1]))


@accepted()
def far_from_the_origin(folder: Path, name: str) -> None:
    affine = OBLIQUE.copy()
    affine[:3, 3] = (1e5, -1e5, 3e4)
    volume(folder, name, affine=affine)


@accepted()
def one_slice_0(folder: Path, name: str) -> None:
    volume(folder, name, CT[3:4])


@refused(NOTHING)
def one_slice_1(folder: Path, name: str) -> None:
    volume(folder, name, CT[:, 10:11])


@refused(NOTHING)
def one_slice_2(folder: Path, name: str) -> None:
    volume(folder, name, CT[:, :, 9:10])


@refused(NOTHING)
def one_voxel(folder: Path, name: str) -> None:
    volume(folder, name, CT[3:4, 10:11, 9:10])


@accepted()
def secret_header(folder: Path, name: str) -> None:
    """Names of a patient wherever NIfTI takes a text."""
    for path in (folder / f"{name}.nii", folder / "labels" / f"{name}.nii"):
        path.parent.mkdir(exist_ok=True)
        image = nib.Nifti1Image(CT if path.parent == folder else LABEL, OBLIQUE)
        for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
            image.header[field] = b"SECRET"
        image.header.extensions.append(
            nib.nifti1.Nifti1Extension("comment", b"SECRET^ANNA born 1970")
        )
        nib.save(image, path)


# Values


def valued(name: str, data: np.ndarray, refusal: str | None = None) -> None:
    KINDS[name] = Kind(lambda folder, name: volume(folder, name, data), name, refusal)


valued(
    "air_only", np.full(SHAPE, -1000, np.int16), "got none in 6 slices: no voxel lies above -200"
)
valued("bone_only", np.full(SHAPE, 1000, np.int16))
valued("constant_zero", np.zeros(SHAPE, np.uint8))
valued("huge_values", np.where(CT > 400, 1e30, CT).astype(np.float32))
valued("beyond_float32", np.where(CT > 400, 1e300, CT).astype(np.float64))
valued("tiny_values", (CT * 1e-40).astype(np.float32))
valued(
    "nan_values",
    np.where(CT > 400, np.nan, CT).astype(np.float32),
    "expected finite voxels in nan_values.nii, got",
)
valued(
    "infinite_values", np.where(CT > 400, np.inf, CT).astype(np.float32), "expected finite voxels"
)
valued("already_0_to_1", ((CT + 1000) / 2000).astype(np.float32))
valued("offset_1024", (CT + 1024).astype(np.int16))
valued("an_mr", np.clip(CT + 100, 0, 255).astype(np.uint8))
valued("padded_3024", np.where(CT < -900, -3024, CT).astype(np.int16))
valued("noise", np.random.default_rng(3).integers(-1000, 2000, SHAPE).astype(np.int16))
WARNED = (
    "bone_only",
    "constant_zero",
    "tiny_values",
    "already_0_to_1",
    "offset_1024",
    "an_mr",
    "pixdim_zero_alone",
)
"""Kinds that are hardly CT, or most slices of which have no contour."""


# Labels


@IGNORED.append
def label_of_no_case(folder: Path) -> None:
    write_nifti(folder / "labels" / "label_empty_seg.nii.gz", LABEL, OBLIQUE)


def named_label(name: str, case: str, file: str) -> None:
    """A label that is named otherwise than its case."""

    def build(folder: Path, name: str) -> None:
        write_nifti(folder / f"{case}.nii.gz", CT, OBLIQUE)
        write_nifti(folder / "labels" / file, LABEL, OBLIQUE)

    KINDS[name] = Kind(build, case, None, file)


named_label("label_of_nnunet", "knee_0000", "knee.nii.gz")
named_label("label_decomposed", "h\u00fcfte", "hu\u0308fte.nii.gz")
named_label("label_composed", "ru\u0308cken", "r\u00fccken.nii.gz")
named_label("label_of_slicer", "slicer", "slicer.seg.nii.gz")


@refused("expected masks that share no voxel in .*, got [0-9]+ in b and a; leave one of them out")
def masks_that_overlap(folder: Path, name: str) -> None:
    for mask in ("a", "b"):
        write_nifti(folder / "labels" / name / f"{mask}.nii.gz", (LABEL > 0).astype("u1"), OBLIQUE)
    write_nifti(folder / f"{name}.nii.gz", CT, OBLIQUE)


@refused("expected a mask of 0 and 1 in .*, got 3 values")
def masks_of_several_values(folder: Path, name: str) -> None:
    values = LABEL.copy()
    values[0, 0, 0] = 5
    write_nifti(folder / "labels" / name / "a.nii.gz", values, OBLIQUE)
    write_nifti(folder / f"{name}.nii.gz", CT, OBLIQUE)


OTHER_GRID = "on the image's grid"


def labelled(
    name: str, data: np.ndarray, refusal: str | None = None, affine: np.ndarray = OBLIQUE
) -> None:
    KINDS[name] = Kind(lambda folder, name: label(folder, name, data, affine), name, refusal)


def shifted(mm: float) -> np.ndarray:
    affine = OBLIQUE.copy()
    affine[0, 3] += mm
    return affine


labelled("label_off_by_1e5", LABEL, affine=shifted(1e-5))
labelled("label_off_by_a_hundredth_of_a_voxel", LABEL, affine=shifted(0.02))
labelled("label_off_by_1_mm", LABEL, OTHER_GRID, affine=shifted(1.0))
labelled("label_turned_slightly", LABEL, OTHER_GRID, affine=OBLIQUE + np.diag([0, 3e-3, 0, 0]))
labelled("label_of_another_shape", LABEL[:-1], OTHER_GRID)
labelled("label_with_fractions", (LABEL / 10).astype(np.float32))
labelled("label_with_negatives", -LABEL.astype(np.int16))
labelled("label_above_65535", LABEL.astype(np.int32) * 70000)
labelled("label_of_64_bits", LABEL.astype(np.int64) * 2**40)
labelled("label_empty", np.zeros(SHAPE, np.uint8))
labelled("label_full", np.ones(SHAPE, np.uint8))
labelled("label_of_many_values", np.arange(CT.size, dtype=np.int32).reshape(SHAPE))
labelled("label_one_hot", np.stack([LABEL == 0, LABEL > 0], axis=-1).astype(np.uint8), "got shape")
labelled("label_nan", np.where(LABEL > 0, np.nan, 0).astype(np.float32), "expected finite voxels")
labelled(
    "label_infinite", np.where(LABEL > 0, np.inf, 0).astype(np.float32), "expected finite voxels"
)


@refused(UNREADABLE)
def label_truncated(folder: Path, name: str) -> None:
    path = label(folder, name, np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:500])


@refused(UNREADABLE)
def label_link_to_nothing(folder: Path, name: str) -> None:
    path = label(folder, name)
    path.unlink()
    path.symlink_to(folder / "nowhere.nii.gz")


@refused("expected one number a voxel in label_rgb.nii, got RGB")
def label_rgb(folder: Path, name: str) -> None:
    volume(folder, name)
    volume(folder / "labels", name, np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))


@accepted()
def label_scaled(folder: Path, name: str) -> None:
    volume(folder, name)
    volume(folder / "labels", name, scl_slope=0.5, scl_inter=3)


@accepted()
def label_big_endian(folder: Path, name: str) -> None:
    volume(folder, name)
    image = nib.Nifti1Image(LABEL.astype(">i2"), OBLIQUE, nib.Nifti1Header(endianness=">"))
    image.set_data_dtype(">i2")
    nib.save(image, folder / "labels" / f"{name}.nii")

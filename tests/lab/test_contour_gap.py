# SPDX-License-Identifier: Apache-2.0
"""Laws of contour statistics: shapes whose density, length and direction are known by arithmetic; CT against itself."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from contourdiff.contours import contour_of
from contourdiff.phantom import write_phantom
from contourdiff_lab.commands import main
from contourdiff_lab.contour_gap import (
    REGIONS,
    RIM_PX,
    ContourGap,
    RegionContour,
    contour_gap,
    contour_statistics,
    direction_names,
    tissue_regions,
)
from helpers.paths import CONFIGS
from helpers.volumes import write_nifti

ALONG_H, TOGETHER, ALONG_W, APART = range(4)
SHAPE = (40, 50)


def whole(shape: tuple[int, int] = SHAPE) -> dict[str, np.ndarray]:
    return {"all": np.ones(shape, dtype=bool)}


def half_plane(angle_degrees: float) -> np.ndarray:
    """200 on one side of a line through the middle that runs at this angle from H towards W, 50 on the other."""
    h, w = np.mgrid[: SHAPE[0], : SHAPE[1]]
    angle = np.deg2rad(angle_degrees)
    return np.where((w - 25) * np.cos(angle) - (h - 20) * np.sin(angle) > 0, 200.0, 50.0)


def statistics_of(image: np.ndarray, spacing_mm: tuple[float, float] = (2.0, 2.0)) -> RegionContour:
    contour = contour_of(image, sigma_px=1.0, low_threshold=20, high_threshold=40)
    return contour_statistics(contour, image, whole(image.shape), spacing_mm)["all"]


def ring(inner: int = 10, outer: int = 29) -> np.ndarray:
    """A square ring, one pixel wide: 4 x (outer - inner) pixels."""
    contour = np.zeros(SHAPE)
    contour[inner : outer + 1, inner : outer + 1] = 1
    contour[inner + 1 : outer, inner + 1 : outer] = 0
    return contour


@pytest.mark.parametrize("spacing", [1.0, 2.2])
def test_a_square_ring_has_the_length_density_and_fragment_of_its_76_pixels(spacing: float) -> None:
    contour = contour_statistics(ring(), ring(), whole(), (spacing, spacing))["all"]
    area = 40 * 50 * spacing**2 / 100
    assert contour.length_mm == pytest.approx(76 * spacing)
    assert contour.area_cm2 == pytest.approx(area)
    assert contour.density_mm_per_cm2 == pytest.approx(76 * spacing / area)
    assert contour.fragments_mm.tolist() == pytest.approx([76 * spacing])


def test_regions_share_a_length_but_a_fragment_counts_whole_in_each() -> None:
    contour = ring()
    contour[35, 5:8] = 1
    left = np.zeros(SHAPE, dtype=bool)
    left[:, :20] = True
    halves = contour_statistics(contour, ring(), {"left": left, "right": ~left}, (2.0, 2.0))
    assert halves["left"].length_mm + halves["right"].length_mm == 2.0 * 79
    assert sorted(halves["left"].fragments_mm) == [6.0, 152.0]
    assert halves["right"].fragments_mm.tolist() == [152.0]


def test_pixels_that_meet_at_a_corner_are_one_fragment() -> None:
    contour = np.eye(12)
    assert contour_statistics(contour, contour, whole((12, 12)), (1.0, 1.0))[
        "all"
    ].fragments_mm.tolist() == [12.0]


@pytest.mark.parametrize(
    ("angle", "expected"),
    [
        (0, ALONG_H),
        (180, ALONG_H),
        (45, TOGETHER),
        (225, TOGETHER),
        (90, ALONG_W),
        (135, APART),
        (-45, APART),
    ],
)
def test_a_line_runs_in_its_own_direction(angle: float, expected: int) -> None:
    line = statistics_of(half_plane(angle))
    assert line.length_mm > 0
    assert line.directions[expected] > 0.95
    assert line.directions.sum() == pytest.approx(1)


def test_directions_are_those_in_millimeters() -> None:
    """At 45 degrees in pixels, but with pixels four times as long along H, an edge runs along H."""
    assert statistics_of(half_plane(45), (4.0, 1.0)).directions[ALONG_H] > 0.95


def test_a_square_has_as_much_along_h_as_along_w_and_turns_with_the_image() -> None:
    image = np.full((40, 40), 40.0)
    image[10:30, 14:26] = 180
    upright = statistics_of(image)
    turned = statistics_of(image.T.copy())
    assert upright.directions[ALONG_H] > upright.directions[ALONG_W] > 0.3  # 20 rows by 12 columns
    assert turned.directions[[ALONG_W, ALONG_H]] == pytest.approx(
        upright.directions[[ALONG_H, ALONG_W]], abs=0.02
    )
    assert turned.length_mm == upright.length_mm


def test_without_contour_or_area_nothing_is_invented() -> None:
    regions = {**whole(), "none": np.zeros(SHAPE, dtype=bool)}
    contours = contour_statistics(np.zeros(SHAPE), half_plane(0), regions, (2.0, 2.0))
    assert contours["all"].density_mm_per_cm2 == 0
    assert contours["all"].length_mm == 0
    assert len(contours["all"].fragments_mm) == 0
    assert np.isnan(contours["all"].directions).all()
    assert np.isnan(contours["none"].density_mm_per_cm2)


def test_regions_separate_the_body_by_distance_to_the_labels_side() -> None:
    """A square of 20 px at 1 mm: inside is what is more than 3 mm deep, near ends 15 mm away."""
    bone = np.zeros((80, 80))
    bone[30:50, 30:50] = 1
    body = np.zeros((80, 80))
    body[5:75, 5:75] = 1
    regions = tissue_regions(bone, body, (1.0, 1.0))
    assert list(regions) == list(REGIONS)
    assert regions["inside"].sum() == 14 * 14
    row = {name: np.flatnonzero(mask[40]) for name, mask in regions.items()}
    assert row["boundary"].tolist() == [27, 28, 29, 30, 31, 32, 47, 48, 49, 50, 51, 52]
    assert row["near"].tolist() == [*range(15, 27), *range(53, 65)]
    assert row["rest"].tolist() == [*range(5, 15), *range(65, 75)]
    assert (sum(mask.astype(int) for mask in regions.values()) == body).all()


def test_bone_counts_where_the_filter_lost_the_body_and_without_bone_all_is_rest() -> None:
    bone = np.zeros(SHAPE)
    bone[10:30, 10:30] = 1
    regions = tissue_regions(bone, np.zeros(SHAPE), (2.0, 2.0))
    assert (regions["inside"] | regions["boundary"]).sum() == 400
    nothing = tissue_regions(np.zeros(SHAPE), np.ones(SHAPE), (2.0, 2.0))
    assert nothing["rest"].all()
    assert not any(nothing[name].any() for name in ("inside", "boundary", "near"))


def test_directions_are_named_in_the_patients_axes() -> None:
    assert direction_names("RAS", 0) == ("A-P", "AS-PI", "S-I", "AI-PS")
    assert direction_names("RAS", 2) == ("R-L", "RA-LP", "A-P", "RP-LA")


def test_shapes_and_spacing_of_contours_are_checked() -> None:
    with pytest.raises(ValueError, match=r"of one shape, got .*cut slices"):
        contour_statistics(np.zeros(SHAPE), np.zeros((4, 4)), whole(), (1.0, 1.0))
    with pytest.raises(ValueError, match="two positive numbers"):
        contour_statistics(np.zeros(SHAPE), np.zeros(SHAPE), whole(), (1.0, 0.0))
    with pytest.raises(ValueError, match="bone and body"):
        tissue_regions(np.zeros(SHAPE), np.zeros((4, 4)), (1.0, 1.0))
    with pytest.raises(ValueError, match="two positive numbers"):
        tissue_regions(np.zeros(SHAPE), np.zeros(SHAPE), (1.0,))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom as CT, and its gray levels as MR with labels counted upward from L5, and a map of both."""
    folder = tmp_path_factory.mktemp("gap")
    image = nib.load(write_phantom(folder / "ct", shape=(16, 80, 80), spacing_mm=(5.0, 3.0, 3.0)))
    label = nib.load(folder / "ct" / "labels" / "phantom.nii.gz")
    values = np.asarray(label.dataobj)
    window = np.asarray(image.dataobj).clip(-200, 300).astype(np.float32) + 200
    write_nifti(folder / "mr" / "images" / "a.nii.gz", window, image.affine)
    write_nifti(folder / "mr" / "labels" / "a.nii.gz", (values > 0).astype(np.uint8), image.affine)
    everything = {"classes": ["bone"], "ct": {"bone": ["1-200"]}, "mr": {"bone": [1]}}
    (folder / "map.json").write_text(json.dumps(everything))
    (folder / "other.json").write_text(json.dumps(everything | {"mr": {"bone": [99]}}))
    return folder


@pytest.fixture(scope="module")
def gap(phantoms: Path) -> ContourGap:
    return contour_gap(
        phantoms / "ct", phantoms / "mr", label_map=phantoms / "map.json", window_hu=[-160, 240]
    )


@pytest.mark.slow
def test_the_contour_is_that_of_the_translation(
    phantoms: Path, gap: ContourGap, inference_parser: Callable[..., ConfigParser]
) -> None:
    steps = inference_parser(window_hu=[-160, 240]).get_parsed_content("preprocessing")
    volume = np.asarray(steps({"image": str(phantoms / "ct" / "phantom.nii.gz")})["image"][0])
    slices = [measured for measured in gap.slices if measured.side == "ct"]
    assert sum(measured.contour.any() for measured in slices) > 10
    middle = (slice(RIM_PX, -RIM_PX), slice(RIM_PX, -RIM_PX))
    for measured in slices:
        np.testing.assert_array_equal(measured.contour, volume[measured.position])
        regions = sum(mask.astype(int) for mask in measured.regions.values())
        assert regions.sum() == regions[middle].sum()
        assert regions.max() == 1
        in_a_region = regions[middle][measured.contour[middle] > 0]
        assert in_a_region.sum() >= 0.98 * len(in_a_region)  # nearly all of it


def test_the_contour_of_the_mr_is_that_of_the_training(phantoms: Path, gap: ContourGap) -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.json"))
    case = {"image": str(phantoms / "mr" / "images" / "a.nii.gz")}
    volume = parser.get_parsed_content("volume_transform")(case)
    contour = parser.get_parsed_content("contour")
    slices = [measured for measured in gap.slices if measured.side == "mr"]
    assert slices
    for measured in slices:
        expected = contour({"image": volume["image"][:, measured.position]})["contour"][0]
        np.testing.assert_array_equal(measured.contour, np.asarray(expected))


def test_a_ct_has_no_gap_to_itself(gap: ContourGap) -> None:
    ct = [measured for measured in gap.slices if measured.side == "ct"]
    as_mr = [replace(measured, side="mr") for measured in ct]
    same = ContourGap([*ct, *as_mr], gap.directions, {})
    assert same.density_factor() == pytest.approx(1)
    assert {line["ratio"] for line in same.summary() if np.isfinite(line["ratio"])} == {1.0}


@pytest.mark.slow
def test_the_command_gap_writes_a_line_a_slice_and_region(
    phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = phantoms / "out"
    folders = [str(phantoms / "ct"), str(phantoms / "mr"), str(out)]
    options = ["--label_map", str(phantoms / "map.json")]
    settings = ["--settings", "contour_high_threshold=60", "--mr_settings", "upper_percentile=99"]
    main(["gap", *folders, *options, *settings])
    with (out / "gap.csv").open() as file:
        rows = list(csv.DictReader(file))
    slices = {(row["side"], row["case"], row["slice"]) for row in rows}
    assert len(rows) == 4 * len(slices)
    assert {row["region"] for row in rows} == set(REGIONS)
    assert {row["side"] for row in rows} == {"ct", "mr"}
    assert (out / "gap.png").stat().st_size > 10_000
    text = (out / "gap.md").read_text()
    assert "{'contour_high_threshold': 60}" in text
    assert "factor of" in text
    assert str(out / "gap.md") in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ct_dir": "absent"}, "expected a folder of CT with labels at .*absent, found none"),
        ({"mr_dir": "absent"}, "expected a folder of MR with labels at .*absent, found none"),
        ({"mr_pattern": "*_t1_*"}, r"no labelled case .* matches '\*_t1_\*'"),
        (
            {"label_map": "other.json"},
            r"expected slices of MR with label values \[99\] .*; pass a label map",
        ),
        ({"min_inside_cm2": 1e6}, "or a smaller min_inside_cm2"),
        ({"overlays": ["slow"]}, r"found no \['slow'\]"),
        ({"window": [0, 1]}, "did you mean"),
        ({"mr_settings": {"percentile": 1}}, "did you mean"),
    ],
)
def test_errors_of_the_gap_say_what_is_missing(phantoms: Path, change: dict, message: str) -> None:
    arguments = {"ct_dir": "ct", "mr_dir": "mr", "label_map": "map.json"} | change
    paths = {name: phantoms / arguments.pop(name) for name in ("ct_dir", "mr_dir", "label_map")}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        contour_gap(**paths, **arguments)


@pytest.mark.slow
def test_real_ct_has_fewer_edges_beside_its_bones_than_real_t1(
    real_data: Path, tmp_path: Path
) -> None:
    """Discs, canal and muscle: what a translator has to paint with less to hold on to than it was trained with."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "torso.nii.gz").symlink_to(real_data / "ct" / "torso_ct.nii.gz")
    (tmp_path / "labels" / "torso.nii.gz").symlink_to(real_data / "ct" / "torso_vertebrae.nii.gz")
    labelled = real_data / "mr_lumbar_labelled"
    gap = contour_gap(tmp_path, labelled, mr_pattern="*_t1_*", min_inside_cm2=10)
    ratios = {
        line["region"]: line["ratio"]
        for line in gap.summary()
        if line["measure"] == "density_mm_per_cm2"
    }
    assert {measured.side for measured in gap.slices} == {"ct", "mr"}
    assert ratios["near"] < 0.8
    assert ratios["inside"] > 1
    assert all(0.7 < measured.boundary_share <= 1 for measured in gap.slices)

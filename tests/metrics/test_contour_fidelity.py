# SPDX-License-Identifier: Apache-2.0
"""The anatomy check: what departs from the given contour is seen, counted and put on the CT's grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from contourdiff.bundle import translate
from contourdiff.inference.inferer import ContourTranslationInferer
from contourdiff.inference.volume_state import VolumeResult
from contourdiff.metrics.contour_agreement import contour_agreement
from contourdiff.metrics.contour_fidelity import (
    ContourFidelityCheck,
    best_limit,
    centered_on,
    fidelity_codes,
    flag_rates,
    own_and_swapped_scores,
    slice_fidelity,
)
from contourdiff.sampling.selection import SelectionRules
from contourdiff.transforms import Contour
from helpers import (
    REPOSITORY,
    TINY_NETWORK,
    as_case,
    assert_same_grid,
    ball_ct,
    contours,
    inferer,
    make_seeded,
    oblique_affine,
    write_nifti,
)

WEIGHTS = REPOSITORY / "bundles" / "contourdiff_ct2mr" / "models" / "model.pt"


def random_contour(seed: int, share: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).random((30, 24)) < share


def boxes(offset: int = 0) -> torch.Tensor:
    """Five slices of gray levels; a bright box in the middle three."""
    volume = torch.zeros(5, 40, 36)
    volume[1:4, 10 + offset : 30 + offset, 8:28] = 200
    return volume


def check(limit: float = 0.7, axis: int = 0) -> ContourFidelityCheck:
    return ContourFidelityCheck(Contour(axis, sigma_px=1.0, low_threshold=20, high_threshold=40), 2.2, limit, axis)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (2.2, 2.2), (0.7, 1.9)])
@pytest.mark.parametrize("tolerance_mm", [0.0, 1.9, 2.2])
def test_codes_count_to_the_shares(spacing_mm: tuple[float, float], tolerance_mm: float) -> None:
    found, given = random_contour(1), random_contour(2)
    codes = fidelity_codes(found, given, tolerance_mm, spacing_mm)
    verdict = slice_fidelity(found, given, tolerance_mm, 0.5, spacing_mm)
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal((codes == 1) | (codes == 3), given)
    assert (codes == 2).sum() / found.sum() == pytest.approx(verdict.invented)
    assert (codes == 3).sum() / given.sum() == pytest.approx(verdict.lost)
    assert verdict.fidelity == contour_agreement(found, given, tolerance_mm, spacing=spacing_mm).f1
    assert verdict.suspect == (verdict.fidelity < 0.5)


def test_swapping_the_contours_swaps_invented_and_lost() -> None:
    found, given = random_contour(1), random_contour(2)
    one, other = (slice_fidelity(*pair, 1.0, 0.5) for pair in ((found, given), (given, found)))
    assert (one.invented, one.lost) == (other.lost, other.invented)


def test_a_blank_translation_loses_all_and_invents_nothing() -> None:
    blank, given = np.zeros((30, 24)), random_contour(2)
    assert slice_fidelity(blank, given, 1.0, 0.5) == (0.0, 1.0, 0.0, True)
    assert slice_fidelity(given, blank, 1.0, 0.5) == (1.0, 0.0, 0.0, True)
    assert slice_fidelity(blank, blank, 1.0, 0.5) == (0.0, 0.0, 1.0, False)
    np.testing.assert_array_equal(fidelity_codes(blank, given, 1.0), given * 3)
    np.testing.assert_array_equal(fidelity_codes(given, blank, 1.0), given * 2)


def test_what_follows_its_contour_passes_and_what_is_moved_does_not() -> None:
    given = torch.as_tensor(Contour(0, 1.0, 20, 40)(boxes()[None])[0])
    good, moved = check()(given, boxes()), check()(given, boxes(offset=5))
    assert [verdict is None for verdict in good.slices] == [True, False, False, False, True]
    assert good.slices[1] == (0.0, 0.0, 1.0, False)
    assert good.suspects == []
    np.testing.assert_array_equal(good.codes, given.numpy())
    assert moved.suspects == [1, 2, 3]
    assert moved.summary()["checked"] == 3
    assert moved.summary()["suspects"] == [1, 2, 3]
    assert moved.summary()["invented_median"] == moved.slices[1].invented > 0.2  # type: ignore[union-attr]
    assert moved.warning() == "3 of 3 slices below the anatomy limit (slices 1, 2, 3): look at them"
    assert moved.warning(most=2).endswith("(slices 1, 2, ...): look at them")
    assert check(limit=0.0)(given, boxes(offset=5)).suspects == []


@pytest.mark.parametrize("axis", [1, 2])
def test_slice_axis_and_in_plane_spacing(axis: int) -> None:
    given = torch.as_tensor(Contour(0, 1.0, 20, 40)(boxes()[None])[0])
    spacing_mm = [1.0, 0.5]
    plain = check()(given, boxes(offset=4), [9.0, *spacing_mm])
    spacing_mm.insert(axis, 9.0)
    moved = check(axis=axis)(given.moveaxis(0, axis), boxes(offset=4).moveaxis(0, axis), spacing_mm)
    assert moved.slices == plain.slices
    np.testing.assert_array_equal(np.moveaxis(moved.codes, axis, 0), plain.codes)


def test_the_border_of_the_box_is_no_contour() -> None:
    """Air may be a little gray in the box and is 0 outside it."""
    given = torch.as_tensor(Contour(0, 1.0, 20, 40)(boxes()[None])[0])
    translation, box = boxes(), (slice(0, 5), slice(4, 36), slice(3, 33))
    translation[box] = translation[box].clamp(min=60)
    assert check()(given, translation).slices[1].invented > 0.2  # type: ignore[union-attr]
    assert check()(given, translation, box=box).slices[1] == (0.0, 0.0, 1.0, False)


def test_nothing_to_check() -> None:
    nothing = check()(torch.zeros(4, 10, 9), torch.zeros(4, 10, 9))
    assert nothing.slices == [None] * 4
    assert nothing.summary()["anatomy_score_median"] is None


@pytest.mark.parametrize(("tolerance_mm", "limit"), [(-1.0, 0.5), (2.2, 1.5), (float("nan"), 0.5)])
def test_knobs_out_of_range_are_explained(tolerance_mm: float, limit: float) -> None:
    with pytest.raises(ValueError, match=r"expected fidelity_tolerance_mm of 0 or more and fidelity_limit in \[0, 1\]"):
        ContourFidelityCheck(Contour(), tolerance_mm, limit)


def test_rates_and_the_limit_that_parts_best() -> None:
    own, swapped = [0.9, 0.8, 0.7, 0.3], [0.5, 0.4, 0.2, 0.1]
    assert flag_rates(own, swapped, 0.6) == (0.75, 1.0)
    assert flag_rates(own, swapped, 0.3) == (1.0, 0.5)
    assert best_limit(own, swapped) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="expected scores of own and of swapped slices, got 4 and 0"):
        flag_rates(own, [], 0.5)


def test_a_swapped_contour_is_centered_on_the_own_one() -> None:
    contour, reference = np.zeros((12, 9)), np.zeros((20, 30))
    contour[2:5, 3:8] = 1
    reference[10, 20] = reference[16, 26] = 1
    moved = centered_on(contour, reference)
    expected = np.zeros((20, 30), dtype=bool)
    expected[12:15, 21:26] = True
    np.testing.assert_array_equal(moved, expected)
    reference[:] = 0
    reference[0, 0] = 1
    assert centered_on(contour, reference).sum() == 2 * 3  # the rest leaves the image
    assert centered_on(contour, np.zeros((20, 30))).sum() == contour.sum()
    assert not centered_on(np.zeros((12, 9)), reference).any()


def test_own_and_swapped_scores_are_those_of_each_pair() -> None:
    found = [random_contour(seed) for seed in (1, 2)]
    own, swapped = own_and_swapped_scores(found, found, found[::-1], 0.0)
    assert own == [1.0, 1.0]
    for score, output, mine, other in zip(swapped, found, found, found[::-1], strict=True):
        assert score == contour_agreement(output, centered_on(other, mine), 0.0).f1 < 0.3


def test_unconditional_translations_know_the_box_and_the_slices_alone() -> None:
    """Other contours in the same box give the same output; with contours they do not."""
    first, second = contours(0), contours(1)
    for volume in (first, second):
        volume[1, [0, -1], [0, -1]] = 1  # the corners of one box
    one, other = (recorded(volume, unconditional=True) for volume in (first, second))
    assert not torch.equal(first, second)
    assert one.box == other.box
    assert torch.equal(one.translation, other.translation)
    assert torch.equal(one.contours, first)
    assert not one.translation[[0, 3]].any()
    assert one.translation[[1, 2, 4, 5, 6]].flatten(1).any(dim=1).all()
    conditional = [recorded(volume).translation for volume in (first, second)]
    assert not torch.equal(*conditional)
    assert not torch.equal(one.translation, conditional[0])


def test_unconditional_is_a_knob_and_recorded(tiny_weights: Path, tmp_path: Path) -> None:
    write_nifti(tmp_path / "ct" / "a.nii.gz", ball_ct((6, 26, 22)), oblique_affine((3.0, 2.2, 2.2)))
    images = []
    for unconditional in (False, True):
        run(tmp_path, tiny_weights, unconditional=unconditional, overwrite=True)
        settings = json.loads((tmp_path / "mr" / "a_mr.json").read_text())["settings"]
        assert settings["unconditional"] is unconditional
        assert settings["save_fidelity_map"] is settings["save_uncertainty_map"] is False
        images.append(np.asarray(nib.load(tmp_path / "mr" / "a_mr.nii.gz").dataobj))
    assert not np.array_equal(*images)


def recorded(volume: torch.Tensor, **options: object) -> VolumeResult:
    records: list[VolumeResult] = []
    inferer(on_volume=records.append, **options)(as_case([volume], ["a"]), make_seeded())
    return records[0]


@pytest.mark.parametrize("axis", [0, 2])
def test_the_record_holds_contours_translation_and_box(axis: int) -> None:
    volume = contours().moveaxis(0, axis).contiguous()
    record = recorded(volume, slice_axis=axis)
    assert torch.equal(record.contours, volume)
    assert record.translation.shape == volume.shape
    assert record.spread is None
    outside = record.translation.clone()
    outside[record.box] = 0
    assert not outside.any()
    assert record.contours[record.box].sum() == volume.sum()


def test_spread_is_the_deviation_over_every_candidate_of_every_round() -> None:
    """Candidates drawn one by one, each in a batch of its own, padded to the same size."""
    volume, rules = contours(shape=(5, 12, 8)), SelectionRules(candidates=3, max_rounds=2, distance_threshold=0.0)
    record = recorded(volume, rules=rules, keep_spread=True, margin_px=99)
    assert record.spread is not None
    plain, network = inferer(rules=rules, margin_px=99), make_seeded()
    for index in (1, 2, 4):
        choice = record.choices[index]
        assert choice is not None
        contour = volume[index][None, None].expand(4, -1, -1, -1)
        keys = [("a", index, round_, number) for round_ in range(choice.rounds) for number in range(3)]
        images = torch.stack([plain.denoiser(network)(contour, [key] * 4)[0] for key in keys])
        torch.testing.assert_close(record.spread[index], images.std(dim=0))
    assert not record.spread[[0, 3]].any()


def test_spread_of_a_single_candidate_is_unknown() -> None:
    rules = SelectionRules(candidates=1, max_rounds=2, mean_threshold=256.0, distance_threshold=1e9)
    record = recorded(contours(), rules=rules, keep_spread=True)
    assert record.spread is not None
    assert record.spread[1][record.box[1:]].isnan().all()
    with pytest.raises(ValueError, match="an uncertainty map wants 2 candidates a slice or more, got candidates 1 and"):
        inferer(rules=SelectionRules(candidates=1, max_rounds=1), keep_spread=True)


def run(folder: Path, weights: Path, **settings: object) -> Path:
    tiny = {"network_def": TINY_NETWORK, "ckpt_path": str(weights), "num_inference_steps": 2, "candidates": 2}
    tiny |= {"max_rounds": 1, "min_object_mm2": 100.0, "batch_size": 4, "logging_file": False}
    return translate(folder / "ct", folder / "mr", **{**tiny, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAL", "IRP"])
def test_maps_lie_on_the_grid_of_an_oblique_ct_of_odd_orientation(
    axcodes: str, tiny_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    affine = oblique_affine((3.0, 2.2, 2.2))
    upright = nib.Nifti1Image(ball_ct((9, 26, 22)), affine)
    turned = upright.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axcodes)))
    )
    path = write_nifti(tmp_path / "ct" / "a.nii.gz", np.asarray(turned.dataobj), turned.affine)
    run(tmp_path, tiny_weights, save_fidelity_map=True, save_uncertainty_map=True, fidelity_limit=1.0)
    record = json.loads((tmp_path / "mr" / "a_mr.json").read_text())
    source, codes, spread = (
        nib.load(file)
        for file in (path, *(tmp_path / "mr" / f"a_{name}.nii.gz" for name in ("anatomy", "uncertainty")))
    )
    for image, dtype in ((codes, np.uint8), (spread, np.float32)):
        assert_same_grid(image, source)
        assert image.get_data_dtype() == dtype
    # the model's grid is the CT's here but for its orientation, so each code and share can be counted in the file
    data = np.asarray(nib.as_closest_canonical(codes).dataobj)
    assert set(np.unique(data)) <= {0, 1, 2, 3}
    checked = [entry for entry in record["slices"] if not entry["skipped"]]
    assert len(checked) >= 5
    for entry in checked:
        given = np.isin(data[entry["slice"]], (1, 3))
        assert (data[entry["slice"]] == 3).sum() / given.sum() == pytest.approx(entry["lost"], abs=1e-6)
        assert entry["suspect"] == (entry["fidelity"] < 1.0)
    assert all("invented" not in entry for entry in record["slices"] if entry["skipped"])
    assert record["anatomy"]["checked"] == len(checked)
    suspects = record["anatomy"]["suspects"]
    assert suspects == [entry["slice"] for entry in checked if entry["suspect"]]
    named = ", ".join(map(str, suspects))
    expected = f"a: {len(suspects)} of {len(checked)} slices below the anatomy limit (slices {named}): look at them"
    assert expected in caplog.text
    deviation = np.asarray(spread.dataobj)
    assert deviation.min() >= 0
    assert deviation.max() > 1
    assert np.isfinite(deviation).all()


def test_codes_stay_codes_on_a_finer_and_a_coarser_grid(
    inference_parser: Callable[..., ConfigParser], tiny_weights: Path, tmp_path: Path
) -> None:
    for number, size_mm in enumerate((1.3, 3.7)):
        write_nifti(tmp_path / "ct" / f"{number}.nii.gz", ball_ct((6, 40, 36)), oblique_affine((3.0, size_mm, size_mm)))
    run(tmp_path, tiny_weights, save_fidelity_map=True)
    for number in range(2):
        codes = nib.load(tmp_path / "mr" / f"{number}_anatomy.nii.gz")
        assert_same_grid(codes, nib.load(tmp_path / "ct" / f"{number}.nii.gz"))
        assert {1, 2} <= set(np.unique(np.asarray(codes.dataobj))) <= {0, 1, 2, 3}
        assert not (tmp_path / "mr" / f"{number}_uncertainty.nii.gz").exists()


def test_an_uncertainty_map_of_single_candidates_ends_before_any_work(tiny_weights: Path, tmp_path: Path) -> None:
    write_nifti(tmp_path / "ct" / "a.nii.gz", ball_ct((6, 26, 22)), oblique_affine((3.0, 2.2, 2.2)))
    with pytest.raises(
        SystemExit, match="error: an uncertainty map wants 2 candidates a slice or more, got candidates 1"
    ):
        run(tmp_path, tiny_weights, save_uncertainty_map=True, candidates=1, max_rounds=1)
    assert list((tmp_path / "mr").glob("*")) == []


def test_swapped_slices_are_flagged_and_untouched_ones_pass(
    real_data: Path, inference_parser: Callable[..., ConfigParser]
) -> None:
    """Slices of two real CT volumes at the limit that ships, against their own contours and the other patient's."""
    parser = inference_parser(ckpt_path=str(WEIGHTS), device="$torch.device('cpu')")
    network, preprocessing = (parser.get_parsed_content(name) for name in ("network", "preprocessing"))
    anatomy = parser.get_parsed_content("anatomy")
    records: list[VolumeResult] = []
    translator = ContourTranslationInferer(
        parser.get_parsed_content("scheduler"),
        rules=SelectionRules(candidates=1, max_rounds=1),
        num_inference_steps=8,
        progress=False,
        on_volume=records.append,
    )
    for name in ("torso_ct", "thorax_ct"):
        volume = preprocessing({"image": str(real_data / "ct" / f"{name}.nii.gz")})["image"]
        given = torch.zeros_like(volume)
        for share in (0.3, 0.4, 0.5, 0.6):
            given[:, int(share * volume.shape[1])] = volume[:, int(share * volume.shape[1])]
        translator(as_case([MetaTensor(given[0]).as_tensor()], [name]), network.eval())
    own, swapped = [], []
    for record, other in (records, records[::-1]):
        filled = [torch.nonzero(item.contours.any(dim=2).any(dim=1)).flatten().tolist() for item in (record, other)]
        exchanged = torch.zeros_like(record.contours)
        for index, partner in zip(*filled, strict=True):
            exchanged[index] = torch.as_tensor(centered_on(other.contours[partner], record.contours[index]))
        for scores, contour in ((own, record.contours), (swapped, exchanged)):
            verdicts = anatomy(contour, record.translation, (1.0, 2.2, 2.2), record.box).slices
            scores.extend(verdict.fidelity for verdict in verdicts if verdict is not None)
    assert len(own) == len(swapped) == 8
    assert flag_rates(own, swapped, anatomy.limit) == (1.0, 1.0), (own, swapped)
    assert flag_rates(own, swapped, best_limit(own, swapped)) == (1.0, 1.0)

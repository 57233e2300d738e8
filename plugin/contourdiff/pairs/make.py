# SPDX-License-Identifier: Apache-2.0
"""Make training pairs: warp each labelled CT, translate its shapes, list the pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from contourdiff.bundle import inference_parser
from contourdiff.config_checks import check_values, plain_errors
from contourdiff.data.checks import check_output_dir
from contourdiff.data.inputs import LABELS, Pair
from contourdiff.data.label_map import LabelMap
from contourdiff.data.translation_cases import TranslationCases, contrast_names
from contourdiff.inference.summary import FailedCasesError
from contourdiff.limits import MAX_SEED, SettingError, check_number, check_whole
from contourdiff.pairs.folder import check_settings
from contourdiff.pairs.run import PairRun
from contourdiff.pairs.shapes import ModelGrid, Shapes
from contourdiff.transforms.warp import WarpStrength
from contourdiff.translation import run_settings

MAX_SHAPES = 100_000
OF_INPUTS = ("dataset_dir", "datalist", "series", "series_uid")
"""Settings of the CT that are not of their shapes."""
OWN_SETTINGS = ("outline", "bone_values", "case_suffix", "output_ext", "format", "overwrite")
"""Settings of a translation that pairs set themselves, or cannot have."""
MR_NOISE = 3.0
"""Standard deviation of the noise of real lumbar MR at 1.1 mm, gray levels; docs/pairs.md has the measurement."""
CONTOUR_SHARES = {
    "contour_sigma_px": 2 / 3,
    "contour_low_threshold": 0.3,
    "contour_high_threshold": 0.3,
}
"""Settings of the finer contour that every second shape gets, as shares of those of the network.

With those of the network, CT has half as many contours in soft tissue as MR; docs/pairs.md has the measurement.
"""


def make_pairs(
    source: str | Path,
    output_dir: str | Path,
    *,
    label: str | Path | None = None,
    shapes: int = 8,
    contrast: str | Sequence[str] | None = None,
    seed: int = 0,
    bone: Sequence[str | int] = (),
    outline_probability: float = 0.5,
    rotation_degrees: float = WarpStrength.rotation_degrees,
    scale: float = WarpStrength.scale,
    elastic_mm: float = WarpStrength.elastic_mm,
    margin_mm: float | None = 15.0,
    label_map: str | Path | None = None,
    fast: bool | None = None,
    **settings: Any,
) -> Path:
    """Make training pairs for a segmentation network: each labelled CT in many shapes, translated to MR.

    CT and label are warped as one, and the contour is that of the warped CT; every second shape has a finer one. The
    first shape is the anatomy itself. Pairs are on the grid of the model: 1.1 mm in the plane of the slices, and
    between them the spacing of the CT. Their MR has the noise of real MR, unless ``noise_gray_levels`` says otherwise.
    Finished pairs are kept, so a call that was interrupted goes on where it stopped.

    Args:
        source: CT with labels, as for [`contourdiff.translation.translate_path`][].
        output_dir: folder of ``<case>_s<shape>_<contrast>_mr.nii.gz`` and ``_label.nii.gz``, of ``datalist.json`` for
            MONAI, and of the picture ``pairs.png``.
        label: of a single CT.
        shapes: number of shapes of each CT.
        contrast: ``"t1"``, ``"t2"``, ``"t2_space"`` or several; ``None`` takes all of the network.
        seed: of warps and noise. The same case and seed give the same pair, alone or in a folder, in any order.
        bone: classes of the label map, or values of labels, that are bone: their contour becomes the one that bones
            have in MR, see [`contourdiff.contours.bone_contour`][].
        outline_probability: share of the shapes whose contour gets the outline of the label; of bones, the border of
            the soft tissue.
        rotation_degrees: this and the next two as in [`contourdiff.transforms.warp.WarpStrength`][].
        scale: see there.
        elastic_mm: see there.
        margin_mm: slices that are farther from the label are left out; ``None`` keeps all.
        label_map: JSON file of classes, as for a segmentation. Labels become its class numbers, and ``label_map.json``
            in ``output_dir`` is the map to train with. ``None`` keeps the values of the labels.
        fast: 4 + 1 steps; ``False``: the paper's setting; ``None``: 1 + 1 steps.
        settings: others of [`contourdiff.translation.translate_path`][]: ``weights``, ``device``, ``overlays``,
            ``bundle``, ``workers``, and any of ``inference.json``. If one of the contour is among them, no shape gets
            the [finer contour][contourdiff.pairs.make.CONTOUR_SHARES].

    Returns:
        ``output_dir``.

    Raises:
        ValueError: for a CT without a label, a bone that is no class, or a folder of pairs that were made with other
            settings; others as there.
        FailedCasesError: after all others are done, if a case failed: it cannot be read, is no CT, or its label has no
            class.
    """
    check_whole("shapes", shapes, 1, MAX_SHAPES)
    check_whole("seed", seed, 0, MAX_SEED)
    check_number("outline_probability", outline_probability, 0, 1)
    if margin_mm is not None:
        check_number("margin_mm", margin_mm, 0)
    strength = WarpStrength(rotation_degrees, scale, elastic_mm)
    own = [name for name in OWN_SETTINGS if name in settings]
    if own:
        raise SettingError(
            f"expected settings of a translation, got {own}, which pairs set themselves; leave them out"
        )
    classes = None
    if label_map is not None:
        classes = LabelMap(label_map)
    bone_values = _bone_values(bone, classes)
    output_dir = Path(output_dir)
    translation = {
        "output_dtype": "uint8",
        "noise_gray_levels": MR_NOISE,
        **settings,
        "seed": seed,
        "fast": fast,
        "draft": fast is None,
        "preview": None,  # a single picture shows all
        "bone_values": bone_values,
    }
    run, inputs = run_settings(source, output_dir, label=label, **translation)
    _check_labels(inputs)
    model, contrasts, contour = _network_of(run, output_dir)
    finer = dict(contour)
    if contour.keys().isdisjoint(settings):
        finer = {name: value * CONTOUR_SHARES[name] for name, value in contour.items()}
    names = contrast_names(contrast) or list(contrasts)
    pairs = PairRun(
        shapes=Shapes(model, strength, seed, outline_probability, classes, margin_mm),
        count=shapes,
        folder=output_dir,
        targets=_targets(output_dir, names, contrasts),
        finer_contour=finer,
        bone_values=bone_values,
    )
    check_output_dir(output_dir)
    check_settings(output_dir, pairs.settings)
    failures = pairs.write_shapes(run, inputs)
    for name in OF_INPUTS:
        translation.pop(name, None)
    failures |= pairs.translate({**translation, "contrast": names or None})
    pairs.finish(failures)
    if failures:
        raise FailedCasesError(_failed(failures, len(inputs)))
    return output_dir


def _bone_values(bone: Sequence[str | int], classes: LabelMap | None) -> list[int]:
    """Values of bones in the labels of the shapes; ``SettingError`` for one that is no class or no value."""
    values = []
    for name in bone:
        if classes is None:
            if not str(name).isdigit():
                raise SettingError(
                    f"expected values of the label as bone, got {name!r}; pass numbers, or a label map with names"
                )
            values.append(int(name))
            continue
        numbers = [number for number, known in classes.classes.items() if known == name]
        if not numbers:
            known = list(classes.classes.values())
            raise SettingError(f"expected bone to be of the classes {known}, got {name!r}")
        values += numbers
    return values


def _check_labels(inputs: Mapping[str, Pair]) -> None:
    """Raise ``ValueError`` if a CT has no label."""
    without = [case for case, (_, label) in inputs.items() if label is None]
    if without:
        raise ValueError(
            f"expected a label for each CT, found none for {without}; pass --label, put it into the folder "
            f"{LABELS} beside the CT, or leave the CT out"
        )


class _Network(NamedTuple):
    """What pairs need to know of the translator."""

    model: ModelGrid
    contrasts: Sequence[str]
    contour: dict[str, float]
    """Settings of the contour."""


def _network_of(run: Mapping[str, Any], output_dir: Path) -> _Network:
    """Read the config of the translator; errors of the config and of the weights are raised here."""
    settings = dict(run)
    for name in ("workers", "scheduler"):
        settings.pop(name, None)
    parser = inference_parser(output_dir=output_dir, **settings)
    with plain_errors():
        parser.get_parsed_content("network")
        values = {name: parser.get_parsed_content(name) for name in ModelGrid._fields}
        check_values(values)
        contour = {name: parser.get_parsed_content(name) for name in CONTOUR_SHARES}
        check_values(contour)
        return _Network(ModelGrid(**values), parser.get_parsed_content("contrasts"), contour)


def _targets(output_dir: Path, names: Sequence[str], contrasts: Sequence[str]) -> TranslationCases:
    """Translations of shapes, all of whose names end in a contrast, also a single one."""
    suffix = ""
    if len(names) == 1:
        suffix = f"_{names[0]}"
    return TranslationCases(
        output_dir, output_dir, contrast=list(names), contrasts=contrasts, case_suffix=suffix
    )


def _failed(failures: Mapping[str, str], cases: int) -> str:
    reasons = [f"{name}: {reason}" for name, reason in failures.items()]
    return f"{len(failures)} failed of {cases} cases: {'; '.join(reasons)}"

# SPDX-License-Identifier: Apache-2.0
"""Files beside each translation: label, maps, picture, and a record of how it was computed."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.transforms import Compose, Invertd
from monai.utils import convert_to_dst_type
from nibabel.affines import apply_affine, voxel_sizes

from contourdiff import __version__
from contourdiff.data.atomic import write_json
from contourdiff.data.case_files import CaseFiles
from contourdiff.data.dicom_series import DicomSeries
from contourdiff.data.label_files import write_label
from contourdiff.data.nifti import save_like
from contourdiff.data.volumes import digest_of, open_volume, scaled_voxels, stored_axis
from contourdiff.inference.preview import Preview
from contourdiff.inference.volume_state import VolumeResult
from contourdiff.metrics.contour_fidelity import ContourFidelityCheck, VolumeFidelity
from contourdiff.metrics.flicker import flicker, flicker_line, flicker_record
from contourdiff.transforms.add_outline import CT_CONTOUR
from contourdiff.weights import sha256_of

logger = logging.getLogger(__name__)

PACKAGES = ("monai", "torch", "numpy", "scipy", "scikit-image", "nibabel")


@dataclass(frozen=True)
class Maps:
    """Maps to write on the grid of the CT, inverted through ``preprocessing``.

    Args:
        preprocessing: transforms from the CT's grid to the model's.
        fidelity: write ``<case>_fidelity.nii.gz``, see [`contourdiff.metrics.contour_fidelity.fidelity_codes`][].
        uncertainty: write ``<case>_uncertainty.nii.gz``, the candidates' spread in gray levels, 0 where it is unknown.
    """

    preprocessing: Compose
    fidelity: bool = False
    uncertainty: bool = False


@dataclass(eq=False)
class TranslationOutputs:
    """Handler of a [`contourdiff.inference.evaluator.CaseEvaluator`][]: write the files beside each MR volume.

    They are those of [`contourdiff.data.case_files.CaseFiles`][]. The label is copied voxel for voxel; the record is
    written last, so that its presence means success, and left in ``state.output[0]["record"]`` for the summary.

    Args:
        output_dir: folder of the files.
        ckpt_path: weights file, whose SHA-256 is recorded.
        settings: the run's settings, recorded with the contrast of the translation.
        slice_axis: axis along which slices are stacked after orientation.
        preview: draws the picture; ``None`` draws none.
        fidelity: check of each translation against the contours of its CT, without the outline of a label, recorded
            for every slice; ``None`` checks nothing.
        maps: maps to write; ``None`` writes none.
        reference_flicker: see [`contourdiff.metrics.flicker.flicker_record`][].
        refiner_path: weights file of the second network of a cascade, recorded, too; ``None`` for a single network.
        output_ext: of the volumes, see [`contourdiff.data.nifti.CaseFolderLayout`][].
        dicom: writes MR and label as DICOM, too; ``None`` for none.

    Raises:
        ValueError: for a fidelity map without a check; as the run starts, for an uncertainty map without spread; and
            for a volume none of whose slices has a contour, before anything of it is written.
    """

    output_dir: str | Path
    ckpt_path: str | Path
    settings: Mapping[str, Any]
    slice_axis: int = 0
    preview: Preview | None = None
    fidelity: ContourFidelityCheck | None = None
    maps: Maps | None = None
    reference_flicker: float | None = None
    refiner_path: str | Path | None = None
    output_ext: str = ".nii.gz"
    dicom: DicomSeries | None = None

    def __post_init__(self) -> None:
        if self.maps is not None and self.maps.fidelity and self.fidelity is None:
            raise ValueError(
                "the fidelity map requires a check, got None; pass fidelity to the outputs"
            )

    @cached_property
    def weights(self) -> dict[str, Any]:
        """Name and SHA-256 of the weights files, read once."""
        weights: dict[str, Any] = _weights_file(self.ckpt_path)
        if self.refiner_path is not None:
            weights["refiner"] = _weights_file(self.refiner_path)
        return weights

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator, after its postprocessing."""
        engine.add_event_handler(Events.STARTED, self._check_spread)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._check_translated)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def _check_spread(self, engine: Engine) -> None:
        if self.maps is None or not self.maps.uncertainty:
            return
        inferer = getattr(engine, "inferer", None)
        if not getattr(inferer, "keep_spread", False):
            raise ValueError(
                f"an uncertainty map requires an inferer with keep_spread=True, got {type(inferer).__name__} without; "
                "keep the spread, or switch the map off"
            )

    def _check_translated(self, engine: Engine) -> None:
        """Add a warning to an item most of whose slices have no contour; ``ValueError`` if all have none."""
        item = engine.state.output[0]  # type: ignore[index]
        source = engine.state.batch[0]["image"].meta["filename_or_obj"]  # type: ignore[index]
        warning = self.contour_warning(item["result"], Path(source))
        if warning is not None:
            logger.warning("%s: %s", item["name"], warning)
            item["warnings"] = [*item["warnings"], warning]

    def contour_warning(self, result: VolumeResult, source: Path) -> str | None:
        """Warning that most slices of the CT ``source`` have no contour, ``None`` if half of them have one.

        Raises:
            ValueError: if none has a contour.
        """
        slices = len(result.choices)
        skipped = result.choices.count(None)
        if 2 * skipped <= slices:
            return None
        reason = self._reason(source)
        if skipped == slices:
            raise ValueError(
                f"expected slices with a contour, got none in {slices} slices: {reason}"
            )
        return f"{skipped} of {slices} slices have no contour and are 0 in the MR: {reason}"

    def _reason(self, source: Path) -> str:
        """Why slices have no contour, and which setting to change."""
        minimum = self.settings.get("min_object_mm2", 0.0)
        low, high = self.settings.get("window_hu", (-200.0, 300.0))
        areas = slice_areas_mm2(source, self.settings.get("axcodes", "RAS"), self.slice_axis, low)
        if not areas.any():
            return f"no voxel lies above {low:g}, the lower end of window_hu; check that it is CT in HU"
        got = f"the largest slice of the body has {areas.max():.0f} mm2, and min_object_mm2 is {minimum:g}"
        if areas.max() < minimum:
            return f"{got}; lower min_object_mm2, or pass a larger field of view"
        return (
            f"{np.count_nonzero(areas == 0)} have no voxel above {low:g} HU, {got}, and contours are of gray levels in "
            f"window_hu, {low:g} to {high:g}; lower min_object_mm2, or check window_hu"
        )

    def __call__(self, engine: Engine) -> None:
        """Write the files of a translation."""
        item = engine.state.output[0]  # type: ignore[index]
        image = engine.state.batch[0]["image"]  # type: ignore[index]
        result: VolumeResult = item["result"]
        contours = convert_to_dst_type(result.contours[None], image)[0]
        files = CaseFiles(Path(self.output_dir), item["name"], self.output_ext)
        source = Path(contours.meta["filename_or_obj"])
        label = None if item["label"] is None else Path(item["label"])
        files.remove_old(with_label=label is not None)
        if label is not None:
            write_label(label, files, item["classes"])
        if self.preview is not None:
            self.preview.save(files.picture, source, label, contours, item["pred"])
        fidelity = self._check(result, item.get(CT_CONTOUR, contours))
        self._write_maps(result, fidelity, contours, files)
        uids = self._write_dicom(item, source, label, files)
        ct = open_volume(source)
        inferer = getattr(engine, "inferer", None)
        record = {
            "case": item["case"],
            "image": item["source"],
            "image_sha256": digest_of(source),
            "label": None if label is None else label.name,
            "classes": item["classes"],
            "dicom": uids,
            "shape": list(ct.shape),
            "spacing_mm": [round(float(size), 6) for size in ct.header.get_zooms()],
            "contourdiff": __version__,
            "python": platform.python_version(),
            "packages": self._packages(),
            "weights": self.weights,
            "settings": self._settings_for(item),
            "inferer": type(inferer).__name__,
            "painter": type(getattr(inferer, "painter", inferer)).__name__,
            "warnings": item["warnings"],
            "network_calls": result.network_calls,
            "batch_size": result.batch_size,
            "flicker": self._flicker(result),
            "fidelity": None if fidelity is None else fidelity.summary(),
            "slices": self._slices(result, fidelity, contours),
        }
        write_json(files.record, record)
        item["record"] = record
        translated = len(result.choices) - result.choices.count(None)
        logger.info(
            "%s: done, %s; %d of %d slices; %s",
            files.name,
            files.mr,
            translated,
            len(result.choices),
            flicker_line(record["flicker"]),
        )
        if fidelity is not None and fidelity.suspects:
            logger.warning("%s: %s", files.name, fidelity.warning())

    def _write_dicom(
        self, item: Mapping[str, Any], source: Path, label: Path | None, files: CaseFiles
    ) -> dict[str, str] | None:
        """Write the DICOM files; their UIDs."""
        if self.dicom is None:
            return None
        return self.dicom.write(
            files.dicom,
            np.asarray(item["pred"][0]),
            open_volume(source).affine,
            item["dicom"],
            contrast=self._settings_for(item).get("contrast"),
            label=label,
            classes=item["classes"],
        )

    def _packages(self) -> dict[str, str]:
        """Versions of what computes the gray levels."""
        packages = {name: version(name) for name in PACKAGES}
        if self.settings.get("acceleration") == "openvino":
            packages["openvino"] = version("openvino")
        return packages

    def _settings_for(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings, with the one contrast of a translation, and whether it has an outline."""
        settings = {**self.settings, "outline": CT_CONTOUR in item}
        contrast = item["contrast"]
        if contrast is not None:
            settings["contrast"] = settings["contrasts"][contrast]
        return settings

    def _check(self, result: VolumeResult, contours: MetaTensor) -> VolumeFidelity | None:
        """Compare with the contour of the CT itself, ``contours (1, H, W, D)``, without the outline of a label."""
        if self.fidelity is None:
            return None
        gray_levels = result.gray_levels[0].as_subclass(torch.Tensor)
        spacing_mm = [float(size) for size in contours.pixdim]
        references = contours[0].as_subclass(torch.Tensor)
        return self.fidelity(references, gray_levels, spacing_mm, result.box)

    def _write_maps(
        self,
        result: VolumeResult,
        fidelity: VolumeFidelity | None,
        contours: MetaTensor,
        files: CaseFiles,
    ) -> None:
        if self.maps is None:
            return
        if self.maps.fidelity and fidelity is not None:
            codes = torch.as_tensor(fidelity.codes)
            self._save_map(codes, contours, files.fidelity, np.uint8)
        if self.maps.uncertainty and result.spread is not None:
            if result.spread.isnan().any():
                logger.warning(
                    "%s: some slices had a single candidate; their uncertainty is unknown, 0",
                    files.name,
                )
            spread = result.spread.nan_to_num(0.0)
            self._save_map(spread, contours, files.uncertainty, np.float32)

    def _save_map(
        self, volume: torch.Tensor, contours: MetaTensor, path: Path, dtype: type
    ) -> None:
        """Invert a map ``(H, W, D)`` as the translation was, codes to the nearest, and write it."""
        preprocessing = self.maps.preprocessing  # type: ignore[union-attr]
        invert = Invertd("map", preprocessing, orig_keys="image", nearest_interp=dtype is np.uint8)
        on_grid = MetaTensor(volume[None].float())
        inverted = invert({"map": on_grid, "image": contours})["map"]
        voxels = inverted[0].as_subclass(torch.Tensor).numpy()
        save_like(voxels.astype(dtype), contours.meta["filename_or_obj"], path)

    def _flicker(self, result: VolumeResult) -> dict[str, float | int | None]:
        volume = np.asarray(result.gray_levels[0])
        gray_levels = np.moveaxis(volume, self.slice_axis, 0)
        contours = np.moveaxis(np.asarray(result.contours), self.slice_axis, 0)
        in_plane = list(result.box)
        del in_plane[self.slice_axis]
        rows, columns = in_plane
        measured = flicker(gray_levels, contours, (rows, columns))
        return flicker_record(measured, result.single_distances, self.reference_flicker)

    def _slices(
        self, result: VolumeResult, fidelity: VolumeFidelity | None, contours: MetaTensor
    ) -> list[dict[str, Any]]:
        """What the record holds of each slice: where it is, what was chosen, and how well it keeps the contour."""
        slices = []
        for index, choice in enumerate(result.choices):
            entry: dict[str, Any] = {
                "slice": index,
                "center_mm": _center_mm(contours, self.slice_axis, index),
                "skipped": choice is None,
            }
            if choice is not None:
                entry.update(asdict(choice))
                del entry["slice_index"]
            verdict = None if fidelity is None else fidelity.slices[index]
            if verdict is not None:
                entry.update(verdict._asdict())
            slices.append(entry)
        return slices


def slice_areas_mm2(source: Path, axcodes: str, slice_axis: int, low: float) -> np.ndarray:
    """Area above ``low`` HU in each slice of a CT in mm2, ``(N,)``, as its slices are stacked after orientation."""
    affine = open_volume(source).affine
    in_plane = [0, 1, 2]
    in_plane.remove(stored_axis(affine, axcodes, slice_axis))
    is_above = scaled_voxels(source) > low
    counts = np.count_nonzero(is_above, axis=tuple(in_plane))
    sizes_mm = voxel_sizes(affine)
    return counts * np.prod(sizes_mm[in_plane])


def _weights_file(path: str | Path) -> dict[str, Any]:
    return {"file": Path(path).name, "sha256": sha256_of(path)}


def _center_mm(image: MetaTensor, axis: int, index: int) -> list[float]:
    """RAS+ coordinates of the middle of a slice, in mm."""
    voxel = [(size - 1) / 2 for size in image.shape[1:]]
    voxel[axis] = index
    affine = np.asarray(image.affine, dtype=np.float64)
    position = apply_affine(affine, voxel)
    return [round(millimeters, 3) for millimeters in position.tolist()]

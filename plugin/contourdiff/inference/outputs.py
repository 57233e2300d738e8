# SPDX-License-Identifier: Apache-2.0
"""Files beside each translation: label, maps, picture, and a record of how it was computed."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.transforms import Compose, Invertd, SaveImage
from monai.utils import convert_to_dst_type

from contourdiff import __version__
from contourdiff.data.atomic import write_text
from contourdiff.data.cases import TranslationCases, case_of
from contourdiff.data.nifti import CaseFolderLayout, SourceGridWriter, save_like
from contourdiff.inference.preview import Preview
from contourdiff.inference.volume_state import VolumeResult
from contourdiff.metrics.contour_fidelity import ContourFidelityCheck, VolumeFidelity
from contourdiff.metrics.flicker import flicker, flicker_line, flicker_record
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

    ``<case>_label.nii.gz`` is the label, voxel for voxel; ``<case>_mr.png`` the picture; ``<case>_mr.json`` the record,
    written last, so that its presence means success. Nothing of a case is kept after its files are written.

    Args:
        cases: the run's cases, for their labels and warnings.
        output_dir: folder of the files.
        ckpt_path: weights file, whose SHA-256 is recorded.
        settings: the run's settings, recorded unchanged.
        slice_axis: axis along which slices are stacked after orientation.
        preview: draws the picture; ``None`` draws none.
        fidelity: check of each translation against its contours, recorded for every slice; ``None`` checks nothing.
        maps: maps to write; ``None`` writes none.
        reference_flicker: see [`contourdiff.metrics.flicker.flicker_record`][].
        refiner_path: weights file of the second network of a cascade, recorded, too; ``None`` for a single network.
        case_suffix: see [`contourdiff.data.cases.TranslationCases`][].
        output_ext: see [`contourdiff.data.nifti.CaseFolderLayout`][].

    Raises ``ValueError`` for a fidelity map without a check and, as the run starts, an uncertainty map without spread.
    """

    cases: TranslationCases
    output_dir: str | Path
    ckpt_path: str | Path
    settings: Mapping[str, Any]
    slice_axis: int = 0
    preview: Preview | None = None
    fidelity: ContourFidelityCheck | None = None
    maps: Maps | None = None
    reference_flicker: float | None = None
    refiner_path: str | Path | None = None
    case_suffix: str = ""
    output_ext: str = ".nii.gz"

    def __post_init__(self) -> None:
        if self.maps is not None and self.maps.fidelity and self.fidelity is None:
            raise ValueError(
                "the fidelity map requires a check, got None; pass fidelity to the outputs"
            )

    @cached_property
    def weights(self) -> dict[str, Any]:
        """Name and SHA-256 of the weights files, read once."""
        refiner = {} if self.refiner_path is None else {"refiner": _file(self.refiner_path)}
        return _file(self.ckpt_path) | refiner

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator, after its postprocessing."""
        engine.add_event_handler(Events.STARTED, self._check_spread)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def _check_spread(self, engine: Engine) -> None:
        inferer = getattr(engine, "inferer", None)
        if (
            self.maps is not None
            and self.maps.uncertainty
            and not getattr(inferer, "keep_spread", False)
        ):
            raise ValueError(
                f"an uncertainty map requires an inferer with keep_spread=True, got {type(inferer).__name__} without; "
                "neighbor-guided translation draws a single candidate a slice: switch the map off"
            )

    def __call__(self, engine: Engine) -> None:
        """Write the files of the translated case."""
        output = engine.state.output[0]  # type: ignore[index]
        result: VolumeResult = output["result"]
        contours = convert_to_dst_type(result.contours[None], engine.state.batch[0]["image"])[0]  # type: ignore[index]
        source = Path(contours.meta["filename_or_obj"])
        case = case_of(source)
        label, base = (
            self.cases.labels.get(case),
            Path(self.output_dir) / f"{case}{self.case_suffix}",
        )
        if label is not None:
            save_like(
                np.asanyarray(nib.load(label).dataobj), label, f"{base}_label{self.output_ext}"
            )
        if self.preview is not None:
            self.preview.save(f"{base}_mr.png", source, label, contours, output["pred"])
        fidelity = self._check(result, contours)
        self._write_maps(result, fidelity, contours)
        ct = nib.load(source)
        record = {
            "case": case,
            "image": self.cases.sources.get(case, source.name),
            "label": None if label is None else label.name,
            "shape": list(ct.shape),
            "spacing_mm": [round(float(size), 6) for size in ct.header.get_zooms()],
            "contourdiff": __version__,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "weights": self.weights,
            "settings": self.settings,
            "inferer": type(getattr(engine, "inferer", None)).__name__,
            "warnings": self.cases.warnings.get(case, []),
            **self._measured(result, fidelity, contours),
        }
        write_text(f"{base}_mr.json", json.dumps(record, indent=2) + "\n")
        logger.info(
            "%s: done, %s; %s", case, f"{base}_mr{self.output_ext}", flicker_line(record["flicker"])
        )
        if fidelity is not None and fidelity.suspects:
            logger.warning("%s: %s", case, fidelity.warning())

    def _check(self, result: VolumeResult, contours: MetaTensor) -> VolumeFidelity | None:
        if self.fidelity is None:
            return None
        gray_levels = result.gray_levels[0].as_subclass(torch.Tensor)
        return self.fidelity(
            result.contours, gray_levels, [float(size) for size in contours.pixdim], result.box
        )

    def _write_maps(
        self, result: VolumeResult, fidelity: VolumeFidelity | None, contours: MetaTensor
    ) -> None:
        if self.maps is None:
            return
        if self.maps.fidelity and fidelity is not None:
            self._save_map(torch.as_tensor(fidelity.codes), contours, "fidelity", np.uint8)
        if self.maps.uncertainty and result.spread is not None:
            if result.spread.isnan().any():
                logger.warning(
                    "%s: some slices had a single candidate; their uncertainty is unknown, 0",
                    result.case,
                )
            self._save_map(result.spread.nan_to_num(0.0), contours, "uncertainty", np.float32)

    def _save_map(
        self, volume: torch.Tensor, contours: MetaTensor, postfix: str, dtype: type
    ) -> None:
        """Invert a map ``(H, W, D)`` as the translation was, codes to the nearest, and write it."""
        preprocessing = self.maps.preprocessing  # type: ignore[union-attr]
        invert = Invertd("map", preprocessing, orig_keys="image", nearest_interp=dtype is np.uint8)
        inverted = invert({"map": MetaTensor(volume[None].float()), "image": contours})["map"]
        SaveImage(
            output_dtype=dtype,
            resample=False,
            print_log=False,
            writer=SourceGridWriter,
            folder_layout=CaseFolderLayout(
                self.output_dir, postfix, self.case_suffix, self.output_ext
            ),
        )(inverted)

    def _flicker(self, result: VolumeResult) -> dict[str, float | int | None]:
        axis = self.slice_axis
        gray_levels, contours = (
            np.moveaxis(np.asarray(v), axis, 0) for v in (result.gray_levels[0], result.contours)
        )
        rows, columns = (side for other, side in enumerate(result.box) if other != axis)
        measured = flicker(gray_levels, contours, (rows, columns))
        return flicker_record(measured, result.single_distances, self.reference_flicker)

    def _measured(
        self, result: VolumeResult, fidelity: VolumeFidelity | None, contours: MetaTensor
    ) -> dict[str, Any]:
        """What the record holds of the run, its flicker and each slice."""
        axis = self.slice_axis
        verdicts = [None] * len(result.choices) if fidelity is None else fidelity.slices
        slices = [
            {
                "slice": index,
                "center_mm": _center_mm(contours, axis, index),
                "skipped": choice is None,
            }
            | (
                {}
                if choice is None
                else {k: v for k, v in asdict(choice).items() if k != "slice_index"}
            )
            | ({} if verdict is None else verdict._asdict())
            for index, (choice, verdict) in enumerate(zip(result.choices, verdicts, strict=True))
        ]
        return {
            "network_calls": result.network_calls,
            "batch_size": result.batch_size,
            "flicker": self._flicker(result),
            "fidelity": None if fidelity is None else fidelity.summary(),
            "slices": slices,
        }


def _file(path: str | Path) -> dict[str, str]:
    return {"file": Path(path).name, "sha256": sha256_of(path)}


def _center_mm(image: MetaTensor, axis: int, index: int) -> list[float]:
    """RAS+ coordinates of the middle of a slice, in mm."""
    voxel = [(size - 1) / 2 for size in image.shape[1:]] + [1.0]
    voxel[axis] = index
    return [round(float(x), 3) for x in (np.asarray(image.affine, dtype=np.float64) @ voxel)[:3]]

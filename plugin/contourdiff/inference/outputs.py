# SPDX-License-Identifier: Apache-2.0
"""What a run leaves beside each translation: the label, a record of how it was made, and a picture to look at."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.transforms import Compose, Invertd, SaveImage

from contourdiff import __version__
from contourdiff.data.atomic import atomic_write, write_text
from contourdiff.data.cases import TranslationCases, case_of
from contourdiff.data.nifti import SourceGridWriter, save_like
from contourdiff.data.planes import ResampledPlanes
from contourdiff.inference.evaluator import CaseIteration
from contourdiff.inference.inferer import check_spread
from contourdiff.inference.volume_state import VolumeResult
from contourdiff.metrics.contour_fidelity import ContourFidelityCheck, VolumeFidelity
from contourdiff.metrics.flicker import flicker_line, flicker_of
from contourdiff.sampling.selection import SelectionRules
from contourdiff.weights import sha256_of

logger = logging.getLogger(__name__)

PACKAGES = ("monai", "torch", "numpy", "scipy", "scikit-image", "nibabel")


class TranslationOutputs:
    """Handler of a translation run: writes the files beside each MR volume, and tells at the end how it went.

    Args:
        cases: the run's cases.
        output_dir: where everything goes.
        ckpt_path: weights file, whose SHA-256 is recorded.
        settings: the run's knobs, recorded as they are.
        slice_axis: axis along which slices are stacked after orientation.
        window_hu: lower and upper end of the CT window, for the picture.
        columns: slices in the picture; an odd number shows the middle one.
        anatomy: check of each translation against its contours, recorded for every slice; ``None`` checks nothing.
        preprocessing: what the maps below are brought back to the CT's grid through.
        reference_flicker: see :func:`contourdiff.metrics.flicker.flicker_of`.
        save_fidelity_map: write ``<case>_anatomy.nii.gz``, the codes of :func:`contourdiff.metrics.contour_fidelity.fidelity_codes`.
        save_uncertainty_map: write ``<case>_uncertainty.nii.gz``, the spread of the candidates in gray levels.
        rules: the selection's, to see whether there is a spread at all.

    Raises:
        ValueError: if a map is asked for without what it is made from.
        SystemExit: with a message if an uncertainty map is asked for and the rules draw a single candidate a slice.
    """

    def __init__(
        self,
        cases: TranslationCases,
        output_dir: str | Path,
        ckpt_path: str | Path,
        settings: Mapping[str, Any],
        slice_axis: int = 0,
        window_hu: tuple[float, float] = (-200.0, 300.0),
        columns: int = 7,
        anatomy: ContourFidelityCheck | None = None,
        preprocessing: Compose | None = None,
        save_fidelity_map: bool = False,
        save_uncertainty_map: bool = False,
        rules: SelectionRules | None = None,
        reference_flicker: float | None = None,
    ) -> None:
        if (save_fidelity_map or save_uncertainty_map) and preprocessing is None:
            raise ValueError("maps are inverted through preprocessing, got None; pass preprocessing to the report")
        if save_fidelity_map and anatomy is None:
            raise ValueError("the anatomy map wants a check, got None; pass anatomy to the report")
        if save_uncertainty_map and rules is not None:
            try:
                check_spread(rules)
            except ValueError as error:
                raise SystemExit(f"error: {error}") from error
        self.cases = cases
        self.output_dir = Path(output_dir)
        self.ckpt_path = Path(ckpt_path)
        self.settings = dict(settings)
        self.slice_axis = slice_axis
        self.window_hu = window_hu
        self.columns = columns
        self.anatomy = anatomy
        self.preprocessing = preprocessing
        self.save_fidelity_map = save_fidelity_map
        self.save_uncertainty_map = save_uncertainty_map
        self.reference_flicker = reference_flicker
        self.done: list[str] = []
        self._flicker: dict[str, str] = {}
        self._records: dict[str, VolumeResult] = {}
        self._suspects: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator, behind its postprocessing."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def record(self, volume: VolumeResult) -> None:
        """Keep what the inferer tells of a volume, until that is written."""
        self._records[volume.case] = volume

    def __call__(self, engine: Engine) -> None:
        """Write label, picture and record of the case that was translated; the record last, as the sign of success."""
        contour = engine.state.batch[0]["image"]  # type: ignore[index]
        source = Path(contour.meta["filename_or_obj"])
        case = case_of(source)
        label = self.cases.labels.get(case)
        if label is not None:
            save_like(_voxels(label), label, self.output_dir / f"{case}_label.nii.gz")
        translation = engine.state.output[0]["pred"]  # type: ignore[index]
        figure = self._picture(source, label, contour, translation)
        with atomic_write(self.output_dir / f"{case}_mr.png") as aside:
            figure.savefig(aside, format="png", dpi=90, facecolor="black")
        record = self._records.pop(case, None)
        if record is None:
            raise RuntimeError(f"no record of {case}; pass on_volume=report.record to the inferer")
        anatomy = self._check(record, contour)
        self._write_maps(record, anatomy, contour)
        content = json.dumps(self._sidecar(record, anatomy, source, label, contour), indent=2)
        write_text(self.output_dir / f"{case}_mr.json", content + "\n")
        self.done.append(case)

    def _check(self, record: VolumeResult, contour: MetaTensor) -> VolumeFidelity | None:
        if self.anatomy is None:
            return None
        spacing_mm = [float(size) for size in contour.pixdim]
        anatomy = self.anatomy(record.contours, record.translation, spacing_mm, record.box)
        if anatomy.suspects:
            self._suspects[record.case] = anatomy.warning()
        return anatomy

    def _write_maps(self, record: VolumeResult, anatomy: VolumeFidelity | None, contour: MetaTensor) -> None:
        if self.save_fidelity_map and anatomy is not None:
            self._save_map(torch.as_tensor(anatomy.codes), contour, "anatomy", np.uint8)
        if self.save_uncertainty_map:
            if record.spread is None:
                raise RuntimeError(f"no spread of {record.case}; pass keep_spread=True to the inferer")
            if record.spread.isnan().any():
                logger.warning("%s: some slices had a single candidate; their uncertainty is unknown, 0", record.case)
            self._save_map(record.spread.nan_to_num(0.0), contour, "uncertainty", np.float32)

    def _save_map(self, volume: torch.Tensor, contour: MetaTensor, postfix: str, dtype: type) -> None:
        """Bring a map ``(H, W, D)`` back as the translation was, codes by the nearest, and write it."""
        codes = dtype is np.uint8
        invert = Invertd("map", self.preprocessing, orig_keys="image", nearest_interp=codes)  # type: ignore[arg-type]
        inverted = invert({"map": MetaTensor(volume[None].float()), "image": contour})["map"]
        SaveImage(
            self.output_dir,
            output_postfix=postfix,
            output_ext=".nii.gz",
            output_dtype=dtype,
            resample=False,
            separate_folder=False,
            print_log=False,
            writer=SourceGridWriter,
        )(inverted)

    def _sidecar(
        self,
        record: VolumeResult,
        anatomy: VolumeFidelity | None,
        source: Path,
        label: Path | None,
        contour: MetaTensor,
    ) -> dict[str, Any]:
        case = record.case
        flicker = flicker_of(record, self.slice_axis, self.reference_flicker)
        self._flicker[case] = flicker_line(flicker)
        verdicts = [None] * len(record.choices) if anatomy is None else anatomy.slices
        slices = [
            {"slice": index, "center_mm": _center_mm(contour, self.slice_axis, index), "skipped": choice is None}
            | ({} if choice is None else {k: v for k, v in asdict(choice).items() if k != "slice_index"})
            | ({} if verdict is None else verdict._asdict())
            for index, (choice, verdict) in enumerate(zip(record.choices, verdicts, strict=True))
        ]
        return {
            "case": case,
            "image": source.name,
            "label": None if label is None else label.name,
            "contourdiff": __version__,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "weights": {"file": self.ckpt_path.name, "sha256": sha256_of(self.ckpt_path)},
            "settings": self.settings,
            "warnings": self.cases.warnings.get(case, []),
            "network_calls": record.network_calls,
            "batch_size": record.batch_size,
            "flicker": flicker,
            "anatomy": None if anatomy is None else anatomy.summary(),
            "slices": slices,
        }

    def _picture(self, source: Path, label: Path | None, contour: MetaTensor, translation: MetaTensor) -> Figure:
        axis = self.slice_axis
        contours = np.moveaxis(np.asarray(contour[0]), axis, 0)
        shown = contours if label is None else _planes(label, contour, axis, range(len(contours)), "nearest")
        filled = [index for index, plane in enumerate(shown) if plane.any()]
        positions = np.quantile(filled, np.linspace(0.1, 0.9, self.columns)).astype(int) if len(filled) else [0]
        mr = _planes(translation, contour, axis, positions, "bilinear")
        rows: list[tuple[str, Sequence[np.ndarray], float, float]] = [
            ("CT", _planes(source, contour, axis, positions, "bilinear", self.window_hu), 0, 1),
            ("contour", [contours[position] for position in positions], 0, 1),
            ("MR", mr, 0, 255),
        ]
        if label is not None:
            rows.append(("MR and label", mr, 0, 255))
        figure = Figure(figsize=(2.4 * len(positions), 2.8 * len(rows)))
        axes = figure.subplots(len(rows), len(positions), squeeze=False)
        for row, (name, planes, vmin, vmax) in enumerate(rows):
            for column, position in enumerate(positions):
                ax = axes[row, column]
                ax.imshow(planes[column].T, cmap="gray", origin="lower", vmin=vmin, vmax=vmax)
                if name == "MR and label" and (outline := shown[position].T).any():
                    for value in np.unique(outline[outline > 0]):
                        color = f"C{int(value) % 10}"
                        ax.contour(outline == value, levels=[0.5], colors=[color], linewidths=0.8)
                ax.invert_xaxis()
                ax.set_axis_off()
            axes[row, 0].set_title(name, fontsize=9, color="white", loc="left")
        figure.tight_layout(pad=0.3)
        return figure

    def run(self, evaluator: SupervisedEvaluator, iteration: CaseIteration) -> None:
        """Run the evaluator over the cases and say how it went.

        Args:
            evaluator: has this report among its handlers.
            iteration: its ``iteration_update``.

        Raises:
            SystemExit: with status 1 if any case failed, after all others are done.
        """
        if self.cases.items:
            iteration.run(evaluator)
        self._summarize()
        if self.cases.failures:
            raise SystemExit(1)

    def _summarize(self) -> None:
        for case in self.done:
            logger.info("%s: done, %s; %s", case, self.output_dir / f"{case}_mr.nii.gz", self._flicker.get(case, ""))
            if case in self._suspects:
                logger.warning("%s: %s", case, self._suspects[case])
        for case in self.cases.kept:
            logger.info("%s: kept, its translation is there already (pass --overwrite true to redo it)", case)
        for case, reason in self.cases.failures.items():
            logger.error("%s: failed, %s", case, reason)
        logger.info(
            "%d translated, %d kept, %d failed; results lie in %s",
            len(self.done),
            len(self.cases.kept),
            len(self.cases.failures),
            self.output_dir.resolve(),
        )


def _voxels(path: Path) -> np.ndarray:
    """Voxels as they are stored where the header does not scale them, else scaled."""
    return np.asanyarray(nib.load(path).dataobj)


def _planes(
    source: Path | MetaTensor,
    target: MetaTensor,
    axis: int,
    positions: Iterable[int],
    mode: str,
    window: tuple[float, float] | None = None,
) -> list[np.ndarray]:
    planes = ResampledPlanes(source, window)
    return [planes.plane(target, axis, int(position), mode) for position in positions]


def _center_mm(image: MetaTensor, axis: int, index: int) -> list[float]:
    """RAS+ coordinates of the middle of a slice, in mm."""
    voxel = [(size - 1) / 2 for size in image.shape[1:]] + [1.0]
    voxel[axis] = index
    return [round(float(x), 3) for x in (np.asarray(image.affine, dtype=np.float64) @ voxel)[:3]]

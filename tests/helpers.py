# SPDX-License-Identifier: Apache-2.0
"""What tests share: the bundle's folder, small networks, small volumes, and a run of the bundle."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.networks.schedulers import DDPMScheduler
from scipy.spatial.transform import Rotation

from contourdiff.bundle import run_inference_config
from contourdiff.data.itk_files import TO_LPS
from contourdiff.inference import (
    CascadeDenoiser,
    Denoiser,
    Execution,
    IndependentCandidates,
    Painter,
    VolumeInferer,
)
from contourdiff.networks import ContourUNet
from contourdiff.sampling import Sampler, SelectionRules

REPOSITORY = Path(__file__).resolve().parents[1]


CONFIGS = REPOSITORY / "bundles" / "contourdiff_ct2mr" / "configs"


LABEL_MAP = str(CONFIGS.parent / "label_maps" / "vertebrae.json")


DATA = REPOSITORY.parent / "shared" / "data"


TINY_NETWORK = {
    "_target_": "contourdiff.networks.ContourUNet",
    "patch_size": 2,
    "channels": [32, 32],
    "attention_levels": [False, False],
    "num_res_blocks": 1,
    "num_head_channels": 32,
}


QUICK: dict[str, Any] = {"filter_classes": 3, "preview#columns": 2}
"""Settings for tests of neither: multi-Otsu of four classes and a picture of seven slices take longer than the rest."""


SMALL_NETWORK: dict[str, Any] = {
    key: value for key, value in TINY_NETWORK.items() if key != "_target_"
}
"""Arguments of the tiny network."""


def make_tiny_network() -> ContourUNet:
    """Untrained, but with an output that depends on the contour: the last layer is drawn, not zero."""
    network = ContourUNet(**SMALL_NETWORK)
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    return network.eval()


def ball_ct(shape: tuple[int, int, int] = (24, 40, 36), seed: int = 0) -> np.ndarray:
    """A body of soft tissue with a bone in it, in air: int16 HU."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = np.sqrt(sum(x**2 for x in grid))
    volume = np.full(shape, -1000.0)
    volume[radius < 0.95] = 40
    volume[(np.abs(grid[0]) < 0.6) & (np.hypot(grid[1] + 0.3, grid[2]) < 0.3)] = 500
    volume += np.random.default_rng(seed).normal(0, 10, shape)
    return volume.astype(np.int16)


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    image.set_sform(affine, 2)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


def oblique_affine(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (11, -7, 5), degrees=True).as_matrix() * spacing_mm
    affine[:3, 3] = (7.1, -31.7, 12.9)
    return affine


def assert_same_grid(result: nib.Nifti1Image, source: nib.Nifti1Image) -> None:
    assert result.shape == source.shape
    np.testing.assert_array_equal(result.affine, source.affine)
    for field in (
        "sform_code",
        "qform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "qoffset_x",
        "pixdim",
    ):
        np.testing.assert_array_equal(result.header[field], source.header[field])


SCHEDULER = DDPMScheduler(
    num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, prediction_type="v_prediction"
)


RULES = SelectionRules(candidates=3, max_rounds=3, mean_threshold=120.0, distance_threshold=2500.0)


def contours(seed: int = 0, shape: tuple[int, int, int] = (7, 21, 18)) -> torch.Tensor:
    volume = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.8).float()
    volume[0] = volume[3] = 0
    return volume


def as_case(volumes: list[torch.Tensor], names: list[str]) -> MetaTensor:
    batch = MetaTensor(torch.stack(volumes)[:, None])
    batch.meta = {"filename_or_obj": [f"folder/{name}.nii.gz" for name in names]}
    batch.applied_operations = [[] for _ in names]
    batch.is_batch = True
    return batch


SAMPLING = ("solver", "num_inference_steps", "eta")
EXECUTION = ("batch_size", "amp", "acceleration", "retain_heap")
INFERER = ("slice_axis", "margin_px", "keep_spread", "progress")


def inferer(
    kind: type[Painter] = IndependentCandidates, scheduler: Any = SCHEDULER, **arguments: Any
) -> VolumeInferer:
    """An inferer whose arguments, and those of its painter, sampler and execution, are given by name."""
    defaults = {
        "rules": RULES,
        "num_inference_steps": 3,
        "batch_size": 4,
        "margin_px": 2,
        "progress": False,
    }
    groups: dict[str, dict[str, Any]] = {
        "sampler": {},
        "execution": {},
        "inferer": {},
        "painter": {},
    }
    for name, value in {**defaults, **arguments}.items():
        if name in SAMPLING:
            groups["sampler"][name] = value
        elif name in EXECUTION:
            groups["execution"][name] = value
        elif name in INFERER:
            groups["inferer"][name] = value
        else:
            groups["painter"][name] = value
    painter = kind(  # type: ignore[call-arg]
        sampler=Sampler(scheduler, **groups["sampler"]),
        execution=Execution(**groups["execution"]),
        **groups["painter"],
    )
    return VolumeInferer(painter, **groups["inferer"])


def denoiser_of(inferer: VolumeInferer, network: torch.nn.Module) -> Denoiser | CascadeDenoiser:
    """The denoiser that the inferer's painter uses."""
    painter = inferer.painter
    assert isinstance(painter, IndependentCandidates)
    return painter.execution.denoiser(network, painter.sampler)


def translate_contours(volume: torch.Tensor, name: str = "a", **given: Any) -> torch.Tensor:
    """Gray levels ``(H, W, D)`` of one volume of contours, by the tiny network."""
    return inferer(**given)(as_case([volume], [name]), make_seeded()).as_tensor()[0, 0]


def make_seeded() -> torch.nn.Module:
    torch.manual_seed(0)
    return make_tiny_network()


def make_attention_network() -> ContourUNet:
    torch.manual_seed(0)
    network = ContourUNet(
        patch_size=2, channels=[32, 32], attention_levels=[False, True], num_res_blocks=1, num_head_channels=16,
        use_flash_attention=True,
    )  # fmt: skip
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    return network.eval()


OBLIQUE = np.array([[3.0, 0.2, 0, -40], [-0.2, 2.5, 0.1, 12], [0.0, -0.1, 4.0, -7], [0, 0, 0, 1]])


NAMES = ("a", "b", "c")


HOSTILE_NAME = """<script>alert(1)<b>"'&amp;{{1}} #?%41"""
"""Name of a case that a page must neither run nor take for markup or for parts of an address."""


def make_dataset(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    for number, name in enumerate(names):
        ct = ball_ct((10, 30, 26), seed=number)
        write_nifti(folder / f"{name}.nii.gz", ct, OBLIQUE)
        write_nifti(
            folder / "labels" / f"{name}.nii.gz",
            (ct > 200).astype(np.uint8) * (number + 27),
            OBLIQUE,
        )
    return folder


def run(dataset_dir: Path, output_dir: Path, weights: Path, **settings: object) -> Path:
    tiny = {
        "overlays": ("single",),
        "network_def": TINY_NETWORK,
        "ckpt_path": str(weights),
        "num_inference_steps": 2,
        "candidates": 2,
        "max_rounds": 2,
        "min_object_mm2": 100.0,
        "batch_size": 4,
        "logging_file": False,
        **QUICK,
    }
    return run_inference_config(dataset_dir, output_dir, **{**tiny, **settings})  # type: ignore[arg-type]


BUNDLE_COMMANDS = """
import json, os, runpy, sys
import monai.bundle

statuses = []
for number, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()  # it has seen nothing of the other commands, and need not import torch again
    if child == 0:
        os.dup2(os.open(f"{number}.log", os.O_WRONLY | os.O_CREAT), 2)
        sys.argv[1:] = arguments
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        sys.exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""
"""Program that runs ``python -m monai.bundle`` with each list of arguments; what it prints of errors is in a log."""


def write_events(folder: Path) -> None:
    """200 training steps and 4 validations, in two event files as MONAI's handlers write them."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    for tag, steps, suffix in (("train_loss", 200, ".train"), ("val_loss", 4, ".val")):
        with tensorboard.SummaryWriter(str(folder), filename_suffix=suffix) as writer:
            for step in range(1, steps + 1):
                writer.add_scalar(tag, 1 / step, step, walltime=1000.0 + step * 200 / steps)


def large_cohort(reported: Path, folder: Path, count: int) -> Path:
    """A folder with ``count`` records that differ in their numbers, made from one of a folder of translations."""
    record = json.loads((reported / "a_mr.json").read_text())
    rng, copies = (
        np.random.default_rng(0),
        [copy.deepcopy(item) for item in record["slices"][1:2] * 30],
    )
    folder.mkdir(parents=True)
    for number in range(count):
        record["fidelity"]["fidelity_median"] = float(rng.uniform(0.4, 0.9))
        record["flicker"]["flicker"] = float(rng.gamma(4, 300))
        record["slices"] = copies[: int(rng.integers(10, 30))]
        (folder / f"case{number:04}_mr.json").write_text(
            json.dumps({**record, "case": f"case{number:04}"})
        )
    return folder


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


GUIDED_NETWORK = {**TINY_NETWORK, "in_channels": 3}


def make_guided_network() -> ContourUNet:
    torch.manual_seed(0)
    network = ContourUNet(
        **{key: value for key, value in GUIDED_NETWORK.items() if key != "_target_"}
    )
    torch.nn.init.normal_(network.out[2].conv.weight, std=0.05)
    return network.eval()


def make_mr(folder: Path) -> Path:
    """Three volumes of four slices and three single slices, with stripes to see contours of."""
    rng = np.random.default_rng(0)
    for number in range(6):
        image = np.zeros((4 if number < 3 else 1, 40, 44), dtype=np.uint8)
        image[:, 4:36, 5:40] = 90
        for stripe in range(8, 34, 6):
            image[:, 6:34, stripe : stripe + 3] = rng.integers(140, 250)
        write_nifti(folder / f"mr{number}.nii.gz", image, np.diag([4.0, 2.2, 2.2, 1.0]))
    (folder / "index.csv").write_text(
        "file,split\n"
        + "".join(f"mr{n}.nii.gz,{'val' if n in (2, 5) else 'train'}\n" for n in range(6))
    )
    return folder


def settings(dataset_dir: Path, output_dir: Path, **changes: object) -> dict[str, object]:
    return {
        "config_file": [str(CONFIGS / f"{name}.json") for name in ("train", "train_single", "cpu")],
        "logging_file": False,
        "dataset_dir": str(dataset_dir),
        "datalist": "index.csv",
        "output_dir": str(output_dir),
        "network_def": TINY_NETWORK,
        "image_size_px": [32, 32],
        "min_object_mm2": 100.0,
        "filter_classes": 3,
        "batch_size": 3,
        "epoch_length": 4,
        "max_epochs": 4,
        "warmup_steps": 2,
        "val_interval": 2,
        "picture_interval": 4,
        **changes,
    }


AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def write_series(
    folder: Path,
    volume: np.ndarray,
    change: Callable[[Any, int], None] = lambda dataset, number: None,
    orientation: tuple[float, ...] = AXIAL,
    uid: str = "1.2.3.1",
) -> Path:
    """Slices ``volume[number]``, rows x columns in HU, 2.5 mm apart along the normal, as files of one series."""
    pydicom = pytest.importorskip(
        "pydicom", minversion="3", reason="files are written by pydicom 3"
    )
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    for number, pixels in enumerate(volume):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"{uid}.{number + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data = pydicom.dataset.Dataset()
        data.file_meta = meta
        data.SOPClassUID, data.SOPInstanceUID = (
            meta.MediaStorageSOPClassUID,
            meta.MediaStorageSOPInstanceUID,
        )
        data.SeriesInstanceUID, data.StudyInstanceUID = uid, "1.2.3"
        data.Modality, data.ImageType, data.SeriesDescription = (
            "CT",
            ["ORIGINAL", "PRIMARY", "AXIAL"],
            f"bone {uid[-1]}",
        )
        data.PatientID, data.InstanceNumber = "anna", number + 1
        data.ImageOrientationPatient = list(orientation)
        position = np.cross(row, column) * 2.5 * number + (-20, -31, 12.5)
        data.ImagePositionPatient = [round(float(x), 4) for x in position]
        data.PixelSpacing, data.SliceThickness = [1.5, 0.75], 2.5
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = (pixels + 1024).astype("<i2").tobytes()
        change(data, number)
        data.save_as(folder / f"{(7 * number) % 101:03}.dcm", enforce_file_format=True)
    return folder


def nibabel_of(image: Any) -> nib.Nifti1Image:
    """A SimpleITK image as nibabel's, voxels and affine."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return nib.Nifti1Image(sitk.GetArrayFromImage(image).transpose(), TO_LPS @ affine)


CT_LEVELS, MR_LEVELS = torch.tensor([-1.0, -0.4, 0.4]), torch.tensor([-1.0, 0.3, 0.8])
"""Levels of background, body and bone in two domains of the same kind of shapes."""


def shapes(seed: int, levels: torch.Tensor, size: int = 24) -> dict[str, torch.Tensor]:
    """A body with two bones, at random places: ``image`` and ``label`` (classes), each ``(1, size, size)``."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size - rng.uniform(0.4, 0.6, (2, 1, 1))
    radii = rng.uniform(0.3, 0.42, 2)
    classes = (np.hypot(rows / radii[0], columns / radii[1]) < 1).astype(np.int64)
    for _ in range(2):
        row, column = rng.uniform(-0.2, 0.2, 2)
        classes[np.hypot(rows - row, columns - column) < rng.uniform(0.08, 0.16)] = 2
    label = torch.from_numpy(classes)[None]
    return {"image": levels[label], "label": label.float()}


TINY_BASELINE = {
    "image_size_px": [32, 32],
    "min_object_mm2": 100.0,
    "max_hole_mm2": 2000.0,
    "mr_min_object_mm2": 100.0,
    "mr_max_hole_mm2": 2000.0,
    "filter_classes": 3,
    "shift_px": 2,
    "generator_channels": 4,
    "generator_blocks": 1,
    "discriminator_channels": 4,
    "pool_size": 3,
    "val_fraction": 0.0,
    "device": "cpu",
}
"""Settings of a baseline for small slices, with small networks."""


def write_domains(root: Path) -> tuple[Path, Path]:
    """Folders ``ct`` and ``mr`` of a volume of six slices each, of the same kind of shapes; the bones are vertebrae."""
    affine = np.diag([4.0, 2.2, 2.2, 1.0])
    for side, first, levels in (("ct", 0, [-1000.0, 0.0, 250.0]), ("mr", 6, [0.0, 70.0, 200.0])):
        items = [shapes(first + number, torch.tensor(levels), size=32) for number in range(6)]
        image, label = (
            torch.cat([item[key] for item in items]).numpy() for key in ("image", "label")
        )
        image = image + np.random.default_rng(first).normal(0, 8, image.shape)
        write_nifti(root / side / "a.nii.gz", image.astype(np.int16), affine)
        if side == "ct":
            write_nifti(
                root / side / "labels" / "a.nii.gz", ((label == 2) * 27).astype(np.uint8), affine
            )
    return root / "ct", root / "mr"

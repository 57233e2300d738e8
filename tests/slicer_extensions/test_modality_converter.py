# SPDX-License-Identifier: Apache-2.0
"""The model for SlicerModalityConverter paints what the translator paints, behind the extension's own interface."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from contourdiff.deploy.single_graph import export_single_graph
from contourdiff.phantom import write_phantom
from contourdiff.sampling.noise import NoiseStream
from contourdiff.translation import translate_path
from helpers.paths import REPOSITORY
from helpers.volumes import read_voxels, write_nifti

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[onnx]'")

FOLDER = REPOSITORY / "plugin" / "slicer" / "modality_converter"
SLICER_PYTHON = Path(
    os.environ.get("CONTOURDIFF_SLICER_PYTHON", REPOSITORY / ".venv-slicer" / "bin" / "python")
)
SHAPE = (3, 120, 150)
SPACING_MM = (14.0, 1.6, 2.0)
MODEL_BASE = """
import os

MODEL_REGISTRY = {}

def register_model(key):
    def registered(model):
        MODEL_REGISTRY[key] = model
        return model
    return registered

class BaseModel:
    def __init__(self, modelKey, device="cpu"):
        self.modelKey, self.device, self.model = modelKey, device.lower(), None

    def loadModel(self):
        folder = os.path.join(os.path.dirname(__file__), "../Resources/Models")
        (file,) = [name for name in os.listdir(folder) if name.startswith(self.modelKey)]
        self.model = self._loadModelFromPath(os.path.join(folder, file))
"""
"""What a model of the extension is given, without Qt and downloads."""
LOAD = """
def import_onnx_model(modelPath, device):
    from onnxruntime import InferenceSession
    return InferenceSession(modelPath, providers=["CPUExecutionProvider"])
"""
IN_SLICER = """
import importlib, sys
from types import SimpleNamespace
import numpy, slicer, slicer.util, vtk

slicer.app = SimpleNamespace(processEvents=lambda: None)
slicer.util.showStatusMessage = lambda message: None
slicer.util.setSliceViewerLayers = lambda **layers: None
module, key, given, expected = sys.argv[1:]
sys.path.insert(0, module)
importlib.import_module("ModalityConverterLib.ModelsImpl.ContourDiffModel")
from ModalityConverterLib.ModelBase import MODEL_REGISTRY

scene = slicer.vtkMRMLScene()
logic = slicer.vtkSlicerVolumesLogic()
logic.SetMRMLScene(scene)
ct = logic.AddArchetypeVolume(given, "ct")
mr = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "mr")
model = MODEL_REGISTRY[key](key)
model.loadModel()
model.runInference(ct, mr)
matrices = []
for node in (ct, mr):
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    matrices.append(slicer.util.arrayFromVTKMatrix(matrix))
display = mr.GetDisplayNode()
numpy.savez(expected, voxels=slicer.util.arrayFromVolume(mr).T, matrices=matrices,
            window=[display.GetWindow(), display.GetLevel()])
"""


class Volume:
    """Stands for a scalar volume node: voxels, ``(K, J, I)``, and their place."""

    def __init__(self, voxels: np.ndarray | None = None, affine: np.ndarray | None = None) -> None:
        self.voxels = voxels
        self.affine = affine
        self.window: tuple[float, float] | None = None

    def GetIJKToRASMatrix(self, matrix: Any) -> None:  # noqa: N802
        matrix.values = self.affine

    def CopyOrientation(self, other: Volume) -> None:  # noqa: N802
        self.affine = other.affine

    def CreateDefaultDisplayNodes(self) -> None:  # noqa: N802
        pass

    def GetDisplayNode(self) -> Volume:  # noqa: N802
        return self

    def AutoWindowLevelOff(self) -> None:  # noqa: N802
        pass

    def SetWindowLevelMinMax(self, low: float, high: float) -> None:  # noqa: N802
        self.window = (low, high)


def stand_in() -> ModuleType:
    """The module ``slicer``, as far as a model uses it."""
    slicer = ModuleType("slicer")
    slicer.messages = []
    slicer.app = SimpleNamespace(processEvents=lambda: None)
    slicer.util = SimpleNamespace(
        arrayFromVolume=lambda volume: volume.voxels,
        arrayFromVTKMatrix=lambda matrix: matrix.values,
        updateVolumeFromArray=lambda volume, voxels: setattr(volume, "voxels", voxels),
        showStatusMessage=slicer.messages.append,
        setSliceViewerLayers=lambda **layers: slicer.messages.append(layers),
    )
    return slicer


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = export_single_graph(tmp_path_factory.mktemp("graph"), overlays=["draft"])
    return path


def write_extension(folder: Path) -> Path:
    """A copy of the extension's folders with one model, as before the installation."""
    for name, text in (
        ("ModalityConverterLib/ModelBase.py", MODEL_BASE),
        ("ModalityConverterLib/Utils/modelLoadUtils.py", LOAD),
        ("Resources/Models/metadata.json", '{"other": {"module_name": "OtherModel"}}'),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "ModalityConverterLib" / "ModelsImpl").mkdir()
    return folder


def run_installer(*arguments: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, FOLDER / "install.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def module(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_extension(tmp_path_factory.mktemp("ModalityConverter"))
    assert run_installer(folder, graph).returncode == 0
    return folder


@pytest.fixture
def slicer(module: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The extension on the path of a Slicer that is a stand-in."""
    slicer = stand_in()
    monkeypatch.setitem(sys.modules, "slicer", slicer)
    matrix = SimpleNamespace(vtkMatrix4x4=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vtk", matrix)  # type: ignore[arg-type]
    monkeypatch.syspath_prepend(str(module))
    yield slicer
    for name in [name for name in sys.modules if name.startswith("ModalityConverterLib")]:
        del sys.modules[name]


def load(key: str) -> Any:
    """A model by its key, as the extension creates it."""
    metadata = json.loads((FOLDER / "metadata.json").read_text())
    name = metadata[key]["module_name"]
    importlib.import_module(f"ModalityConverterLib.ModelsImpl.{name}")
    base = importlib.import_module("ModalityConverterLib.ModelBase")
    model = base.MODEL_REGISTRY[key](key, device="CPU")
    model.loadModel()
    return model


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom whose axes lie in another order, two of them flipped."""
    folder = tmp_path_factory.mktemp("phantom")
    image = nib.load(write_phantom(folder, shape=SHAPE, spacing_mm=SPACING_MM))
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    return write_nifti(folder / "turned" / "ct.nii.gz", np.asarray(turned.dataobj), turned.affine)


@pytest.fixture(scope="module")
def oblique_ct(ct: Path) -> Path:
    """The phantom, tilted. Its slices are sampled elsewhere by the translator: MONAI's grids begin in the middle."""
    tilt = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.05, -0.08))
    affine = tilt @ nib.load(ct).affine
    return write_nifti(ct.with_name("oblique.nii.gz"), read_voxels(ct), affine)


def node_of(path: Path) -> Volume:
    return Volume(read_voxels(path).transpose(), nib.load(path).affine)


@pytest.mark.slow
@pytest.mark.parametrize(("key", "contrast"), [("t1", "t1"), ("space", "t2_space")])
def test_the_volume_is_that_of_the_translator_from_the_same_noise(
    key: str,
    contrast: str,
    ct: Path,
    slicer: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside a pixel of the contour that rounding moves, gray levels differ by less than 0.1."""

    def no_noise(stream: NoiseStream) -> Tensor:
        return torch.zeros(len(stream.keys), *stream.shape)

    monkeypatch.setattr(NoiseStream, "draw", no_noise)
    options = {"acceleration": None, "amp": False, "draft": True, "device": "cpu"}
    (expected,) = translate_path(ct, tmp_path, contrast=contrast, progress=False, **options)
    model = load(f"contourdiff_ct2mr_{key}")
    volume = sys.modules["ModalityConverterLib.ModelsImpl.ContourDiffVolume"]
    monkeypatch.setattr(
        volume, "correlated_noise", lambda rng, shape, deviation: np.zeros(shape, np.float32)
    )
    source, output = node_of(ct), Volume()
    returned = model.runInference(source, output)
    mr = output.voxels.transpose()
    truth = read_voxels(expected.mr)
    assert truth.std() > 20
    assert np.abs(mr - truth).mean() < 0.05
    assert np.quantile(np.abs(mr - truth), 0.99) < 0.1
    np.testing.assert_array_equal(returned, mr)
    np.testing.assert_array_equal(output.affine, source.affine)
    assert output.window == (0, 255)
    assert slicer.messages[:-1] == [f"contourdiff: slice {n} of 3" for n in (1, 2, 3)]


@pytest.mark.slow
def test_a_mask_keeps_what_lies_in_it(ct: Path, slicer: ModuleType) -> None:
    model = load("contourdiff_ct2mr_t1")
    source, whole, part = node_of(ct), Volume(), Volume()
    mask = np.zeros(source.voxels.shape, np.uint8)
    mask[:, 20:90, 30:80] = 1
    model.runInference(source, whole)
    model.runInference(source, part, inputMask=Volume(mask, source.affine))
    np.testing.assert_array_equal(part.voxels, whole.voxels * mask)
    assert part.voxels.any()
    with pytest.raises(ValueError, match="expected a mask on the grid of the CT"):
        model.runInference(source, part, inputMask=Volume(mask[1:], source.affine))


@pytest.mark.slow
def test_voxels_without_a_place_are_refused(ct: Path, slicer: ModuleType) -> None:
    """As newer versions of the extension pass them to a process of its own."""
    model = load("contourdiff_ct2mr_t2")
    volume = SimpleNamespace(array=node_of(ct).voxels)
    with pytest.raises(RuntimeError, match="expected a volume with spacing and orientation"):
        model.runInference(volume, Volume())


def test_a_volume_without_a_body_is_refused(slicer: ModuleType) -> None:
    air = Volume(np.full((20, 24, 22), -1000, np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    with pytest.raises(ValueError, match="expected slices with a contour, got none"):
        load("contourdiff_ct2mr_t1").runInference(air, Volume())


def test_noise_is_standard_normal_and_correlated_along_the_slices(slicer: ModuleType) -> None:
    load("contourdiff_ct2mr_t1")
    volume = sys.modules["ModalityConverterLib.ModelsImpl.ContourDiffVolume"]
    noise = volume.correlated_noise(np.random.default_rng(0), (40, 90, 80), 2.0)
    assert noise.shape == (40, 90, 80)
    np.testing.assert_allclose(noise.std(axis=(1, 2)), 1, atol=0.05)
    for distance in (1, 3):
        pairs = noise[:-distance] * noise[distance:]
        assert pairs.mean() == pytest.approx(np.exp(-(distance**2) / 16), abs=0.02)
    white = volume.correlated_noise(np.random.default_rng(0), (4, 90, 80), 0.0)
    assert abs((white[1:] * white[:-1]).mean()) < 0.02


def test_a_file_of_another_origin_is_refused(module: Path, slicer: ModuleType) -> None:
    model = load("contourdiff_ct2mr_t1")
    other = module / "other.onnx"
    other.write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="expected a file of contourdiff export --single at"):
        model._loadModelFromPath(str(other))


def test_the_installation_keeps_the_other_models_and_can_be_repeated(
    module: Path, graph: Path, tmp_path: Path
) -> None:
    assert run_installer(module, graph).returncode == 0
    models = json.loads((module / "Resources" / "Models" / "metadata.json").read_text())
    keys = [f"contourdiff_ct2mr_{contrast}" for contrast in ("t1", "t2", "space")]
    assert list(models) == ["other", *keys]
    for key in list(models)[1:]:
        copied = module / "Resources" / "Models" / f"{key}.onnx"
        assert copied.read_bytes() == graph.read_bytes()
        assert models[key].keys() == {
            "url",
            "display_name",
            "description",
            "module_name",
            "mask_required",
        }
    refused = run_installer(tmp_path, graph)
    assert refused.returncode == 1
    assert "expected the folder of ModalityConverter.py" in refused.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not SLICER_PYTHON.is_file(), reason="no environment with slicer-core, see docs/slicer.md"
)
def test_nodes_of_slicer_get_the_same_volume_on_the_same_grid(
    oblique_ct: Path, module: Path, slicer: ModuleType, tmp_path: Path
) -> None:
    key = "contourdiff_ct2mr_t2"
    here = Path(np.__file__).parents[1]
    command = [SLICER_PYTHON, "-c", IN_SLICER, module, key, oblique_ct, tmp_path / "mr.npz"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(here)})
    written = np.load(tmp_path / "mr.npz")
    output = Volume()
    load(key).runInference(node_of(oblique_ct), output)
    np.testing.assert_allclose(written["voxels"], output.voxels.transpose(), atol=0.01)
    source, result = written["matrices"]
    np.testing.assert_array_equal(result, source)
    np.testing.assert_allclose(source, nib.load(oblique_ct).affine, atol=1e-4)
    assert written["window"].tolist() == [255, 127.5]

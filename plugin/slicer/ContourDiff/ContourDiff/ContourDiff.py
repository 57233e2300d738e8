# SPDX-License-Identifier: Apache-2.0
"""Module of 3D Slicer: the MR of a CT, beside it in the scene."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import ctk
import qt
import slicer
from ContourDiffLib import Requirements, Scene
from ContourDiffLib.Logic import (
    CONTRASTS,
    SPEEDS,
    CancelledError,
    Request,
    Result,
    Translation,
    TranslationError,
    case_name,
)
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

POLL_MS = 200
HELP = """
A CT volume goes in, a synthetic MR volume on the same grid comes out, so that a segmentation of the CT is one of the
MR. The weights paint T1, T2 and T2 SPACE of the sagittal lumbar spine. The images are generated: for research, not for
diagnosis.
"""


class ContourDiff(ScriptedLoadableModule):
    """The module as Slicer lists it."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        parent.title = "ContourDiff"
        parent.categories = ["Image Synthesis"]
        parent.contributors = ["The contourdiff authors"]
        parent.helpText = HELP
        parent.acknowledgementText = "The method is that of Chen et al., arXiv 2403.10786."


class ContourDiffWidget(ScriptedLoadableModuleWidget):
    """Choices, a button that starts and cancels, and progress."""

    def setup(self) -> None:
        """Build the widgets."""
        super().setup()
        box = ctk.ctkCollapsibleButton()
        box.text = "CT to MR"
        self.layout.addWidget(box)
        form = qt.QFormLayout(box)
        self.ct = _node_selector(["vtkMRMLScalarVolumeNode"])
        self.label = _node_selector(["vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode"])
        self.label.noneEnabled = True
        self.contrast = qt.QComboBox()
        self.contrast.addItems(list(CONTRASTS))
        self.speed = qt.QComboBox()
        self.speed.addItems(list(SPEEDS))
        self.seed = qt.QSpinBox()
        self.seed.maximum = 2**31 - 1
        self.fidelity = qt.QCheckBox()
        form.addRow("CT in HU:", self.ct)
        form.addRow("Label of the CT:", self.label)
        form.addRow("Contrast:", self.contrast)
        form.addRow("Speed:", self.speed)
        form.addRow("Seed of the noise:", self.seed)
        form.addRow("Show where the MR follows its contour:", self.fidelity)
        self.button = qt.QPushButton("Translate")
        self.button.connect("clicked(bool)", self.onButton)
        self.bar = qt.QProgressBar()
        self.log = qt.QPlainTextEdit()
        self.log.readOnly = True
        for widget in (self.button, self.bar, self.log):
            form.addRow(widget)
        self.layout.addStretch(1)
        self.timer = qt.QTimer()
        self.timer.interval = POLL_MS
        self.timer.connect("timeout()", self.onTimer)
        self.translation: Translation | None = None

    def cleanup(self) -> None:
        """End a translation with the module."""
        if self.translation is not None:
            self.translation.cancel()

    def onButton(self, *_: Any) -> None:
        """Start a translation, or cancel the one that runs."""
        if self.translation is not None:
            self.translation.cancel()
            return
        with slicer.util.tryWithErrorDisplay("The translation did not start."):
            self._start()

    def _start(self) -> None:
        node = self.ct.currentNode()
        if node is None:
            raise ValueError("expected a CT, got none; choose a volume")
        install()
        self.log.plainText = ""
        self.folder = Path(slicer.util.tempDirectory())
        request = self._request(node)
        self.node = node
        python = shutil.which("PythonSlicer") or sys.executable
        environment = slicer.util.startupEnvironment()
        self.translation = Translation(request.command(python), request.contrast, environment)
        self.shown = 0
        self.button.text = "Cancel"
        self.bar.setRange(0, 0)
        self.timer.start()

    def _request(self, node: Any) -> Request:
        """Write CT and label, and say what is to be done with them."""
        ct = self.folder / f"{case_name(node.GetName())}.nii"
        Scene.write_volume(node, ct)
        label = None
        chosen = self.label.currentNode()
        if chosen is not None and chosen.IsA("vtkMRMLLabelMapVolumeNode"):
            label = self.folder / "label" / ct.name
            label.parent.mkdir()
            Scene.write_volume(chosen, label)
        return Request(
            ct,
            self.folder / "mr",
            contrast=CONTRASTS[self.contrast.currentText],
            speed=SPEEDS[self.speed.currentText],
            seed=self.seed.value,
            label=label,
            fidelity=self.fidelity.checked,
        )

    def onTimer(self) -> None:
        """Show progress; at the end, the results."""
        run = self.translation
        is_running = run.poll()
        for line in run.lines[self.shown :]:
            self.log.appendPlainText(line)
        self.shown = len(run.lines)
        if run.total:
            self.bar.setRange(0, run.total)
            self.bar.value = run.done
        if is_running:
            return
        self.timer.stop()
        self.translation = None
        self.button.text = "Translate"
        self.bar.setRange(0, 1)
        self.bar.value = 0
        try:
            with slicer.util.tryWithErrorDisplay("The results could not be loaded."):
                self._show_results(run)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _show_results(self, run: Translation) -> None:
        try:
            results = run.results()
        except CancelledError as error:
            self.log.appendPlainText(str(error))
            return
        except TranslationError as error:
            slicer.util.errorDisplay(str(error))
            return
        if self.node.GetScene() is None:
            self.log.appendPlainText("the CT was closed, so its MR is not loaded")
            return
        for result in results:
            self._load(result)
        label = results[0].label  # the same for all
        if label is not None:
            name = f"{self.node.GetName()} label"
            _put_beside(Scene.read_segmentation(label, name, self.node), self.node)

    def _load(self, result: Result) -> None:
        """Load an MR and its map beside the CT, and show it over the CT."""
        name = f"{self.node.GetName()} {result.name} synthetic MR"
        nodes = [Scene.read_mr(result.mr, name, self.node)]
        layers = {"background": self.node, "foreground": nodes[0], "foregroundOpacity": 1.0}
        if result.fidelity is not None:
            nodes.append(Scene.read_fidelity(result.fidelity, f"{name} fidelity", self.node))
            layers.update(label=nodes[-1], labelOpacity=0.6)
        for node in nodes:
            _put_beside(node, self.node)
        slicer.util.setSliceViewerLayers(**layers)
        for warning in result.warnings:
            self.log.appendPlainText(warning)


def install() -> None:
    """Install PyTorch by SlicerPyTorch and then what else is missing, after a question.

    Raises:
        RuntimeError: without the extension PyTorch, or if the question was answered by no.
    """
    try:
        import PyTorchUtils
    except ImportError as error:
        raise RuntimeError(
            "expected the extension PyTorch, got none; install it by the Extensions Manager"
        ) from error
    torch = PyTorchUtils.PyTorchUtilsLogic()
    if not torch.torchInstalled():
        torch.installTorch(askConfirmation=True, torchVersionRequirement=Requirements.TORCH)
    if not torch.torchInstalled():
        raise RuntimeError("expected PyTorch to be installed, got none; try again")
    is_there = bool(Requirements.installed_versions([Requirements.PACKAGE]))
    if is_there and not Requirements.missing():
        return
    question = "contourdiff and the packages that it requires will be installed (a few minutes)."
    if not slicer.util.confirmOkCancelDisplay(question):
        raise RuntimeError("expected contourdiff to be installed, got no consent; try again")
    if not is_there:
        source = Requirements.package_source(Path(__file__))
        slicer.util.pip_install(["--no-deps", source])
    kept = Path(slicer.util.tempDirectory()) / "constraints.txt"
    kept.write_text(Requirements.constraints(), encoding="utf-8")
    missing = Requirements.missing()
    if missing:
        slicer.util.pip_install(["--constraint", str(kept), *missing])


def _node_selector(kinds: list[str]) -> Any:
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = kinds
    selector.hideChildNodeTypes = ["vtkMRMLDiffusionWeightedVolumeNode"]
    selector.addEnabled = selector.removeEnabled = selector.renameEnabled = False
    selector.setMRMLScene(slicer.mrmlScene)
    return selector


def _put_beside(node: Any, ct: Any) -> None:
    """Put a node into the study of the CT."""
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = tree.GetItemParent(tree.GetItemByDataNode(ct))
    tree.SetItemParent(tree.GetItemByDataNode(node), study)


class ContourDiffTest(ScriptedLoadableModuleTest):
    """Run by Slicer's own test runner."""

    def runTest(self) -> None:
        """The widget is built, and waits for a CT."""
        slicer.mrmlScene.Clear()
        widget = slicer.util.getModuleWidget("ContourDiff")
        assert widget.button.text == "Translate"
        assert widget.ct.currentNode() is None
        assert widget.translation is None

# SPDX-License-Identifier: Apache-2.0
"""Several processes train as one does: the same items, transforms, noise, losses and files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import DataLoader
from monai.transforms import RandGaussianNoised
from torch.utils.data import RandomSampler

from contourdiff.training import ContourPrepareBatch, SliceDataset
from contourdiff.training.distributed import RankBatches, SeededItems, join_processes
from contourdiff.training.loss_curve import read_scalars
from helpers.inferers import SCHEDULER
from helpers.networks import TINY_NETWORK
from helpers.paths import CONFIGS, REPOSITORY
from helpers.runs import tiny_training_settings
from helpers.volumes import write_nifti

OVERLAY = str(CONFIGS / "multi_gpu_train.json")
CPU = "$torch.device('cpu')"
PLAN = {
    "batch_size": 4,
    "epoch_length": 5,
    "max_epochs": 6,
    "val_interval": 2,
    "picture_interval": 6,
    "device": CPU,
}


def torchrun(processes: int, module: str, *arguments: str) -> None:
    """Run a module in several processes on this machine; its output is shown if it fails."""
    launch = [
        "torch.distributed.run",
        "--standalone",
        "--local_addr",
        "127.0.0.1",
        "--nproc_per_node",
        str(processes),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "plugin")}
    command = [sys.executable, "-m", *launch, "-m", module, *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def bundle_arguments(plan: dict[str, object]) -> list[str]:
    return ["run", *[word for name, value in plan.items() for word in (f"--{name}", str(value))]]


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """The environment that torchrun gives to a single process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, str(value))
        yield


def run_alone(plan: dict[str, object]) -> None:
    """Train in this process, with the overlay."""
    workflow = ConfigWorkflow(workflow_type="train", **plan)  # type: ignore[arg-type]
    workflow.initialize()
    workflow.run()
    assert threads_of_gloo()
    workflow.finalize()
    assert not threads_of_gloo(), "a thread that outlives the interpreter aborts the process"


def threads_of_gloo() -> list[str]:
    """Names of this process's threads that exchange data with other processes."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


@pytest.fixture(scope="module")
def mr(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six real slices, two of them held out."""
    folder = tmp_path_factory.mktemp("distributed") / "mr"
    folder.mkdir()
    files = sorted((real_data / "mr_lumbar" / "t1").glob("*.nii.gz"))[:6]
    for file in files:
        shutil.copy(file, folder)
    lines = [f"{file.name},{'val' if at > 3 else 'train'}" for at, file in enumerate(files)]
    (folder / "index.csv").write_text("\n".join(["file,split", *lines, ""]))
    return folder


def plan_of(mr: Path, output_dir: Path, **changes: object) -> dict[str, object]:
    plan = tiny_training_settings(mr, output_dir, **PLAN, **changes)
    return {**plan, "config_file": [*plan["config_file"], OVERLAY]}  # type: ignore[misc]


@pytest.fixture(scope="module")
def trained(mr: Path, alone: None) -> tuple[Path, Path]:
    """The same training in one process, and in two from the command line."""
    one, two = mr.parent / "one", mr.parent / "two"
    run_alone(plan_of(mr, one))
    changes = {**plan_of(mr, two), "network_def": json.dumps(TINY_NETWORK)}
    names = ("image_size_px", "min_object_mm2", "filter_classes", "network_def")
    names += ("warmup_steps", *PLAN)
    pairs = [f"{name}={changes[name]}" for name in names if name != "device"]
    overlays = ["--overlays", "train_single", "cpu", "multi_gpu_train", "--device", "cpu"]
    torchrun(
        2,
        "contourdiff",
        "train",
        str(mr),
        str(two),
        "--datalist",
        "index.csv",
        *overlays,
        "--settings",
        *pairs,
    )
    return one, two


def assert_same_training(output_dir: Path, other: Path) -> None:
    """Losses of all steps; and weights, but for a few whose gradient is near 0: Adam enlarges its rounding."""
    for tag, steps in (("train_loss", 30), ("val_loss", 3)):
        losses, others = (read_scalars(folder, tag)[:, 1:] for folder in (output_dir, other))
        assert len(losses) == steps
        np.testing.assert_allclose(losses, others, rtol=0, atol=1e-5)
    assert_same_weights(output_dir, other, 6, largest=1e-3)


def assert_same_weights(output_dir: Path, other: Path, epoch: int, largest: float) -> None:
    states = [
        torch.load(f / f"checkpoint_epoch={epoch}.pt", weights_only=True)
        for f in (output_dir, other)
    ]
    for part in states[0].keys() & {"network", "ema"}:
        first, second = (
            torch.cat([value.flatten() for value in state[part].values()]) for state in states
        )
        difference = (first - second).abs()
        assert difference.mean() < 1e-6
        assert difference.max() < largest


@pytest.mark.slow
def test_two_processes_train_as_one_does(trained: tuple[Path, Path]) -> None:
    assert_same_training(*trained)


@pytest.mark.slow
def test_several_processes_write_files_once(trained: tuple[Path, Path]) -> None:
    """By the first process: an event file for training and one for validation, weights, checkpoint and picture."""
    for output_dir in trained:
        names = sorted(path.name for path in output_dir.iterdir() if "tfevents" not in path.name)
        assert names == [
            "checkpoint_epoch=6.pt",
            "model.pt",
            "settings.json",
            "translations_00006.png",
        ]
        assert len(list(output_dir.glob("*tfevents*"))) == 2
    weights = [torch.load(output_dir / "model.pt", weights_only=True) for output_dir in trained]
    assert weights[0].keys() == weights[1].keys()


@pytest.mark.slow
def test_a_training_resumes_in_another_number_of_processes(
    trained: tuple[Path, Path], mr: Path
) -> None:
    """Two epochs in one process, two in two, and two in one again."""
    resumed = mr.parent / "resumed"
    run_alone(plan_of(mr, resumed, **{"train#trainer#max_epochs": 2}))
    second = {"train#trainer#max_epochs": 4, "resume_from": str(resumed / "checkpoint_epoch=2.pt")}
    torchrun(2, "monai.bundle", *bundle_arguments(plan_of(mr, resumed, **second)))
    run_alone(plan_of(mr, resumed, resume_from=str(resumed / "checkpoint_epoch=4.pt")))
    for other in trained:
        assert_same_training(resumed, other)


@pytest.mark.slow
def test_two_processes_train_a_segmentation_as_one_does(alone: None, tmp_path: Path) -> None:
    """Seven slices for training, so that one of each epoch is left out; the best weights are those of one process."""
    random = np.random.default_rng(0)
    for number in range(9):
        classes = np.zeros((1, 70, 70), dtype=np.uint8)
        classes[:, 20:45, 15 + 2 * number : 40 + 2 * number] = 30
        gray = (classes > 0) * 150.0 + 60 + random.normal(0, 5, classes.shape)
        for name, data in (("mr", gray.astype(np.float32)), ("label", classes)):
            write_nifti(
                tmp_path / "mr" / f"p{number}_{name}.nii.gz", data, np.diag([4.0, 2.0, 2.0, 1.0])
            )
    plan: dict[str, object] = {
        "config_file": [str(CONFIGS / "segmentation_train.json"), OVERLAY],
        "dataset_dir": str(tmp_path / "mr"),
        "label_map": str(CONFIGS.parent / "label_maps" / "vertebrae.json"),
        "output_dir": str(tmp_path / "one"),
        "batch_size": 2,
        "max_epochs": 3,
        "val_interval": 3,
        "val_fraction": 0.25,
        "device": CPU,
        "logging_file": False,
        "optimizer": {
            "_target_": "torch.optim.SGD",
            "params": "$@network.parameters()",
            "lr": 1e-3,
        },
    }
    run_alone(plan)
    torchrun(2, "monai.bundle", *bundle_arguments({**plan, "output_dir": tmp_path / "two"}))
    assert_same_weights(tmp_path / "one", tmp_path / "two", 3, largest=1e-6)
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert files[0] == files[1] == ["checkpoint_epoch=3.pt", "model.pt"]


def of_process(patch: pytest.MonkeyPatch, rank: int, processes: int) -> None:
    patch.setattr(idist, "get_rank", lambda: rank)
    patch.setattr(idist, "get_world_size", lambda: processes)


@pytest.mark.parametrize(("processes", "num_workers"), [(1, 2), (2, 0), (3, 1), (6, 0)])
def test_shares_of_a_batch_are_those_of_one_process(
    processes: int, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items, their random transforms, noise and timesteps, whatever the number of processes and workers."""

    def batches(rank: int, processes: int, num_workers: int) -> list[list[torch.Tensor]]:
        of_process(monkeypatch, rank, processes)
        torch.manual_seed(0)
        share = RankBatches(RandomSampler(slices, num_samples=20), batch_size=6)
        loader = DataLoader(SeededItems(slices), num_workers=num_workers, batch_sampler=share)
        assert len(loader) == 3
        prepared = [
            ContourPrepareBatch(SCHEDULER, timestep_draws=2, contour_dropout=0.5)(batch)
            for batch in loader
        ]
        return [[images, target, *list(extra.values())] for images, target, _, extra in prepared]

    volume = {"image": torch.rand(1, 7, 8, 8) + 0.1, "contour": torch.ones(1, 7, 8, 8)}
    slices = SliceDataset(
        [volume], ("image", "contour"), transform=RandGaussianNoised("image", prob=1.0)
    )
    whole = batches(0, 1, 0)
    shares = [batches(rank, processes, num_workers) for rank in range(processes)]
    for number, batch in enumerate(whole):
        for part, tensor in enumerate(batch):
            joined = torch.stack([share[number][part] for share in shares], dim=1).flatten(0, 1)
            assert torch.equal(joined, tensor)
    assert not torch.equal(whole[0][0], whole[1][0])


def test_unequal_shares_and_a_missing_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"expected batch_size \(8\) slices or more, got 7; reduce batch_size"
    ):
        RankBatches(RandomSampler(range(7)), batch_size=8)
    of_process(monkeypatch, 1, 3)
    with pytest.raises(ValueError, match="expected a multiple of their number, 3, got 4"):
        RankBatches(RandomSampler(range(7)), batch_size=4)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="expected device cuda:1 for process 1, got cuda:0 of"):
        join_processes("cuda:0")
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(ValueError, match="expected one process for each GPU, started by torchrun"):
        join_processes("cpu")


def test_without_torchrun_the_overlay_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    workflow = ConfigWorkflow(workflow_type="train", **plan_of(tmp_path, tmp_path / "out"))  # type: ignore[arg-type]
    workflow.initialize()
    with pytest.raises(
        SystemExit, match=r"^error: expected one process for each GPU, started by torchrun"
    ):
        workflow.run()
    assert not (tmp_path / "out").exists()

# SPDX-License-Identifier: Apache-2.0
"""Training with train.json itself: it learns, and a resumed training equals an uninterrupted one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from contourdiff.bundle import config_files, read_config, train
from contourdiff.inference import progress
from contourdiff.networks import ContourUNet
from contourdiff.training.handlers import TrainingProgress
from contourdiff.weights import load_weights
from helpers.networks import TINY_NETWORK
from helpers.paths import CONFIGS
from helpers.runs import tiny_training_settings
from helpers.volumes import make_mr


def tensors(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(path, weights_only=True)
    return {
        f"{part}.{key}": value
        for part in ("network", "ema")
        for key, value in checkpoint[part].items()
    }


@pytest.fixture(scope="module")
def mr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mr(tmp_path_factory.mktemp("training") / "mr")


@pytest.fixture(scope="module")
def trained(mr: Path) -> Path:
    """A training of four epochs, without a stop."""
    output_dir = mr.parent / "whole"
    monai.bundle.run(**tiny_training_settings(mr, output_dir))  # type: ignore[arg-type]
    return output_dir


@pytest.mark.slow
@pytest.mark.parametrize("run_id", ["train", "run"])
def test_each_name_of_the_training_trains_and_keeps_the_last_checkpoint_alone(
    run_id: str, tmp_path: Path
) -> None:
    """``monai.bundle run train`` evaluated the section of that name, trained nothing, and was content."""
    mr, out = make_mr(tmp_path / "mr"), tmp_path / "out"
    plan = tiny_training_settings(
        mr, out, max_epochs=2, val_interval=1, picture_interval=9, epoch_length=2
    )
    monai.bundle.run(run_id=run_id, **plan)  # type: ignore[arg-type]
    assert (out / "model.pt").is_file()
    assert (out / "settings.json").is_file()
    first = out / "checkpoint_epoch=2.pt"
    assert list(out.glob("checkpoint*")) == [first]
    monai.bundle.run(run_id=run_id, **{**plan, "max_epochs": 3}, resume_from=str(first))  # type: ignore[arg-type]
    assert list(out.glob("checkpoint*")) == [out / "checkpoint_epoch=3.pt"]


@pytest.mark.slow
def test_a_resumed_training_equals_an_uninterrupted_one(
    mr: Path, trained: Path, tmp_path: Path
) -> None:
    """Stopped for good after epoch 2 of 4, in another workflow from its checkpoint to the end: the same to the bit."""
    workflow = ConfigWorkflow(workflow_type="train", **tiny_training_settings(mr, tmp_path))  # type: ignore[arg-type]
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), trainer.terminate)
    workflow.run()
    assert trainer.state.iteration == 8
    checkpoint = tmp_path / "checkpoint_epoch=2.pt"
    torch.manual_seed(12345)
    monai.bundle.run(**tiny_training_settings(mr, tmp_path, resume_from=str(checkpoint)))  # type: ignore[arg-type]
    expected, got = (
        tensors(trained / "checkpoint_epoch=4.pt"),
        tensors(tmp_path / "checkpoint_epoch=4.pt"),
    )
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        assert torch.equal(value, got[key]), key


@pytest.mark.slow
def test_a_training_with_workers_resumes_to_the_bit(mr: Path, tmp_path: Path) -> None:
    """Workers draw from the epoch's seed, too."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    plan = {"num_workers": 2, "val_interval": 1, "picture_interval": 9}
    monai.bundle.run(**tiny_training_settings(mr, whole, max_epochs=3, **plan))  # type: ignore[arg-type]
    workflow = ConfigWorkflow(
        workflow_type="train", **tiny_training_settings(mr, parts, max_epochs=3, **plan)
    )  # type: ignore[arg-type]
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), trainer.terminate)
    workflow.run()
    torch.manual_seed(12345)
    checkpoint = str(parts / "checkpoint_epoch=2.pt")
    resumed = tiny_training_settings(mr, parts, max_epochs=3, resume_from=checkpoint, **plan)
    monai.bundle.run(**resumed)  # type: ignore[arg-type]
    expected = tensors(whole / "checkpoint_epoch=3.pt")
    got = tensors(parts / "checkpoint_epoch=3.pt")
    for key, value in expected.items():
        assert torch.equal(value, got[key]), key


@pytest.mark.parametrize("base", ["train", "segmentation_train"])
def test_a_gpu_does_not_wait_for_a_single_process(base: str) -> None:
    for device, workers in (("cuda:1", 4), ("cuda", 4), ("cpu", 0)):
        parser = read_config(config_files(base=base), {"device": f"$torch.device('{device}')"})
        assert parser.get_parsed_content("num_workers") == workers


def test_a_training_refuses_a_device_without_float64(mr: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected device to be cpu or cuda, got 'mps': slices"):
        train(mr, tmp_path, device="mps", amp=False)


@pytest.mark.slow
def test_saved_model_is_the_moving_average_and_loads_strictly(trained: Path) -> None:
    network = ContourUNet(
        **{key: value for key, value in TINY_NETWORK.items() if key != "_target_"}
    )
    load_weights(network, trained / "model.pt")
    ema = {
        key[4:]: value
        for key, value in tensors(trained / "checkpoint_epoch=4.pt").items()
        if key.startswith("ema.")
    }
    raw = tensors(trained / "checkpoint_epoch=4.pt")
    for key, value in network.state_dict().items():
        assert torch.equal(value, ema[key])
    assert any(not torch.equal(ema[key], raw[f"network.{key}"]) for key in ema)
    assert (trained / "translations_00004.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_settings_lie_beside_the_weights(trained: Path) -> None:
    content = json.loads((trained / "settings.json").read_text())
    assert (content["batch_size"], content["max_epochs"], content["seed"]) == (3, 4, 0)
    assert content["network_def"]["channels"] == TINY_NETWORK["channels"]


def test_training_progress_counts_the_images_of_the_whole_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rate and the time left in it, also of a resumed training, which begins with the images before it."""
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    for done in (0, 5):
        engine = Engine(lambda engine, batch: None)
        TrainingProgress(batch_size=8).attach(engine)
        engine.load_state_dict({"epoch_length": 5, "max_epochs": 2, "iteration": done})
        engine.run(range(5))
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith(f"train: {8 * done} of 80 images, ")
        found = [
            re.match(r"epoch (\d) of 2: (\d+) of 80 images, .* left, +[0-9.]+image/s$", line)
            for line in lines[1:]
        ]
        counted = dict.fromkeys(
            (int(match[1]), int(match[2])) for match in found if match
        )  # the last line is repeated
        assert list(counted) == [(1 + step // 5, 8 * step + 8) for step in range(done, 10)]


@pytest.mark.slow
def test_the_validation_loss_of_a_training_falls(mr: Path, tmp_path: Path) -> None:
    """With fixed noise and timesteps the validation loss can be compared between epochs."""
    changes = {
        "max_epochs": 6,
        "epoch_length": 40,
        "val_interval": 2,
        "picture_interval": 100,
        "ema_momentum": 0.1,
    }
    workflow = ConfigWorkflow(
        workflow_type="train", **tiny_training_settings(mr, tmp_path, **changes)
    )  # type: ignore[arg-type]
    workflow.initialize()
    losses: list[float] = []
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.add_event_handler(
        Events.COMPLETED, lambda engine: losses.append(engine.state.metrics["val_loss"])
    )
    workflow.run()
    assert len(losses) == 3
    assert losses[-1] < 0.9 * losses[0]
    assert evaluator.state.best_metric == min(losses)


def losses_of(dataset_dir: Path, output_dir: Path, **changes: object) -> list[float]:
    """Losses of every step; the state of the generators before the run is arbitrary."""
    torch.manual_seed(int.from_bytes(output_dir.name.encode()[-4:], "big"))
    np.random.seed(len(output_dir.name))  # what MONAI's transforms start from
    plan = {
        "max_epochs": 2,
        "epoch_length": 25,
        "val_interval": 2,
        "picture_interval": 100,
        **changes,
    }
    workflow = ConfigWorkflow(
        workflow_type="train", **tiny_training_settings(dataset_dir, output_dir, **plan)
    )  # type: ignore[arg-type]
    workflow.initialize()
    losses: list[float] = []
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output["loss"]))
    )
    workflow.run()
    return losses


@pytest.mark.slow
def test_the_same_seed_trains_with_the_same_losses_for_fifty_steps(
    mr: Path, tmp_path: Path
) -> None:
    first = losses_of(mr, tmp_path / "first")
    assert len(first) == 50
    assert losses_of(mr, tmp_path / "another") == first
    assert losses_of(mr, tmp_path / "other_seed", seed=1) != first


@pytest.mark.slow
def test_mixed_precision_trains_on_any_device(mr: Path, tmp_path: Path) -> None:
    """In bfloat16 the losses are near those of float32, and not the same; weights and their average stay float32."""
    exact = losses_of(mr, tmp_path / "float32", max_epochs=1)
    mixed = losses_of(mr, tmp_path / "bfloat16", max_epochs=1, amp=True)
    assert mixed != exact
    np.testing.assert_allclose(mixed, exact, rtol=0.05)
    state = torch.load(tmp_path / "bfloat16" / "model.pt", weights_only=True)
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_a_training_refuses_an_unknown_setting(mr: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"'learning_rates'; did you mean '?learning_rate"):
        monai.bundle.run(**tiny_training_settings(mr, tmp_path, learning_rates=1e-3))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_neighbor_guided_overlay_trains(mr: Path, tmp_path: Path) -> None:
    """Single slices have no neighbor, so that volumes alone are listed."""
    (tmp_path / "volumes.csv").write_text(
        "file,split\nmr0.nii.gz,train\nmr1.nii.gz,train\nmr2.nii.gz,val\n"
    )
    changes = {
        "network_def": {**TINY_NETWORK, "in_channels": 3},
        "datalist": str(tmp_path / "volumes.csv"),
    }
    plan = tiny_training_settings(mr, tmp_path / "out", max_epochs=2, picture_interval=2, **changes)
    plan["config_file"] = [*plan["config_file"], str(CONFIGS / "train_neighbor_guided.json")]  # type: ignore[misc]
    monai.bundle.run(**plan)  # type: ignore[arg-type]
    assert {"model.pt", "translations_00002.png"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }

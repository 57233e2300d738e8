# SPDX-License-Identifier: Apache-2.0
"""Learning to paint in one step: the target is a translation, training resumes to the bit, weights are a refiner's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.networks.nets import PatchDiscriminator
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from contourdiff.bundle import config_files, train
from contourdiff.contours import contour_of
from contourdiff.inference import CascadeDenoiser, Denoiser
from contourdiff.networks import ContourUNet
from contourdiff.sampling import Sampler
from contourdiff.sampling.intensity import to_gray_levels
from contourdiff.sampling.noise import CandidatePlace
from contourdiff.training.inferer import batch_noise
from contourdiff.training.one_step import (
    Adversary,
    FrozenPainter,
    OneStepInferer,
    OneStepLoss,
    OneStepPrepareBatch,
    gradient_magnitude,
    sharp_loss,
)
from contourdiff.weights import load_weights
from helpers.inferers import SCHEDULER
from helpers.networks import TINY_ARGUMENTS, TINY_NETWORK
from helpers.volumes import make_mr

CONTRASTS = ["t1", "t2"]
COARSE = {"in_channels": 5, "contrasts": CONTRASTS}
REFINER = {"in_channels": 3}
SEED = 3


def drawn(seed: int, **arguments: Any) -> ContourUNet:
    """A tiny network none of whose layers is 0, as MONAI starts some."""
    torch.manual_seed(seed)
    network = ContourUNet(**TINY_ARGUMENTS, **arguments)
    for weight in network.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.05)
    return network.eval()


def make_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 1, 32, 32, generator=generator)
    contour = torch.rand(3, 1, 32, 32, generator=generator) > 0.8
    return {
        "image": 2 * image - 1,
        "contour": contour.float(),
        "contrast": torch.tensor([0, 1, 0]),
    }


def preparation(teacher: nn.Module, steps: int) -> OneStepPrepareBatch:
    coarse = FrozenPainter(drawn(1, **COARSE), SCHEDULER)
    return OneStepPrepareBatch(coarse, FrozenPainter(teacher, SCHEDULER, steps), fixed_seed=SEED)


class PreparedNoise:
    """Noise of a translation: that of the training's batch, first of the coarse slice."""

    def __init__(self, *noise: Tensor) -> None:
        self.remaining = list(noise)

    def stream(self, *place: object) -> SimpleNamespace:
        return SimpleNamespace(draw=lambda: self.remaining.pop(0))


def test_the_target_is_what_the_teacher_paints_from_the_noise_of_the_student() -> None:
    teacher = drawn(2, **REFINER)
    _, targets, _, given = preparation(teacher, 4)(make_batch())

    def predict(x: Tensor, timesteps: Tensor) -> Tensor:
        return teacher(torch.cat([x, given["condition"]], dim=1), timesteps)

    with torch.no_grad():
        expected = Sampler(SCHEDULER, num_inference_steps=4)(predict, lambda: given["noise"])
    assert torch.equal(targets[:, :1], expected)
    assert torch.equal(targets[:, 1:], make_batch()["contour"])
    assert not targets.requires_grad


def test_the_target_is_what_a_translation_paints() -> None:
    """The coarse slice, too: in one step, in each slice's contrast, from noise of its own."""
    batch, teacher = make_batch(), drawn(2, **REFINER)
    prepare = preparation(teacher, 4)
    _, targets, _, given = prepare(batch)
    one, four = Sampler(SCHEDULER, num_inference_steps=1), Sampler(SCHEDULER, num_inference_steps=4)
    coarse = Denoiser(prepare.coarse.network, one, batch_size=3)
    cascade = CascadeDenoiser(coarse, Denoiser(teacher, four, batch_size=3))
    noise = PreparedNoise(batch_noise(torch.zeros(3, 1, 16, 16), SEED + 1), given["noise"])
    places = [CandidatePlace("a", number, 0, 0) for number in range(3)]
    translations = cascade(batch["contour"], places, noise, batch["contrast"])  # type: ignore[arg-type]
    torch.testing.assert_close(to_gray_levels(targets[:, 0]), translations, atol=1e-4, rtol=0)


def test_a_teacher_of_one_step_has_nothing_to_teach() -> None:
    teacher = drawn(2, **REFINER)
    images, targets, _, given = preparation(teacher, 1)(make_batch())
    painted = OneStepInferer(SCHEDULER)(images, teacher, **given)
    assert painted.requires_grad
    assert torch.equal(painted, targets[:, :1])
    assert OneStepLoss()(painted, targets) == 0


def test_noise_is_fixed_for_a_validation_alone() -> None:
    batch, prepare = make_batch(), preparation(drawn(2, **REFINER), 1)
    first, second = prepare(batch)[3], prepare(batch)[3]
    assert torch.equal(first["noise"], second["noise"])
    assert torch.equal(first["condition"], second["condition"])
    prepare.fixed_seed = None
    third, fourth = prepare(batch)[3], prepare(batch)[3]
    assert not torch.equal(third["noise"], fourth["noise"])
    assert not torch.equal(third["condition"][:, 1], fourth["condition"][:, 1])


def test_the_loss_is_of_gray_levels_and_of_edges() -> None:
    """A constant has no edges; a ramp along an axis has one in every pixel."""
    image = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(sharp_loss(image + 0.25, image), torch.tensor(0.25))
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    for sloped in (ramp, ramp.mT):
        torch.testing.assert_close(sharp_loss(sloped, 0 * sloped), torch.tensor(3.5 + 1))


def test_the_gradient_is_that_of_the_contour() -> None:
    """Wherever it exceeds the upper threshold along a ridge there is a contour, and no contour where it is lower."""
    generator = np.random.default_rng(0)
    slice_ = gaussian_filter(generator.uniform(0, 255, (48, 48)), 2) * 3 % 255
    magnitude = gradient_magnitude(torch.from_numpy(slice_)[None, None].float(), 1.5)[0, 0].numpy()
    inner = np.s_[8:-8, 8:-8]
    for threshold in (np.quantile(magnitude[inner], 0.5), np.quantile(magnitude[inner], 0.8)):
        thresholds = {"low_threshold": threshold, "high_threshold": threshold}
        contour = contour_of(slice_, sigma_px=1.5, **thresholds)[inner] > 0
        assert contour.any()
        assert magnitude[inner][contour].min() >= threshold - 0.01
        ridge = contour_of(slice_, sigma_px=1.5, low_threshold=0.01, high_threshold=0.01)[inner] > 0
        assert not (ridge & ~contour & (magnitude[inner] > threshold + 0.01)).any()


def test_an_edge_that_a_contour_promises_is_asked_for() -> None:
    """Its loss falls with the contrast of the edge, to none where it is a contour's; elsewhere no edge is asked for."""
    contour = torch.zeros(1, 1, 32, 32)
    contour[..., 16] = 1
    loss = OneStepLoss(contour_weight=0.5, sigma_px=1.5, magnitude=40)
    shares = []
    for contrast in (0, 10, 100):
        slice_ = torch.zeros(1, 1, 32, 32)
        slice_[..., 16:] = contrast / 127.5
        slice_.requires_grad_()
        value = loss(slice_, torch.cat([slice_, contour], dim=1).detach())
        value.backward()
        assert slice_.grad is not None
        assert bool(slice_.grad.any()) == (contrast == 10)
        shares.append(value.item())
    assert shares[0] == pytest.approx(0.5, abs=1e-4)
    assert 0 < shares[1] < 0.5
    assert shares[2] == 0
    nothing = torch.zeros(1, 2, 32, 32)
    assert loss(nothing[:, :1], nothing) == 0


def small_discriminator() -> nn.Module:
    return PatchDiscriminator(2, channels=4, in_channels=2, norm="INSTANCE")


def adversarial_step(adversary: Adversary, step: int) -> tuple[Tensor, Tensor]:
    """Loss of the network, which was 1 before, and the gradient of its slices."""
    batch = make_batch()
    painted = torch.zeros(3, 1, 32, 32, requires_grad=True)
    output = {"image": batch["image"], "pred": painted, "loss": painted.sum() + 1}
    state = SimpleNamespace(iteration=step, output=output, batch=batch)
    groups = [{"lr": 1e-3}]
    engine = SimpleNamespace(state=state, optimizer=SimpleNamespace(param_groups=groups))
    assert adversary.discriminator is not None
    adversary._add_loss(engine, adversary.discriminator)
    output["loss"].backward()
    assert all(weight.grad is None for weight in adversary.discriminator.parameters())
    adversary._learn(engine, adversary.discriminator)
    adversary.optimizer.zero_grad()
    assert painted.grad is not None
    return output["loss"].detach(), painted.grad


def test_the_network_learns_from_the_discriminator_after_its_start() -> None:
    torch.manual_seed(0)
    adversary = Adversary(small_discriminator, weight=0.5, start=2)
    assert adversary.discriminator is not None
    before = [weight.detach().clone() for weight in adversary.discriminator.parameters()]
    loss, gradient = adversarial_step(adversary, 2)
    assert loss == 1
    assert torch.equal(gradient, torch.ones_like(gradient))
    after = list(adversary.discriminator.parameters())
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    loss, gradient = adversarial_step(adversary, 3)
    assert loss > 1
    assert not torch.equal(gradient, torch.ones_like(gradient))
    assert adversary.optimizer.param_groups[0]["lr"] == pytest.approx(2e-3)


def test_the_discriminator_learns_to_tell_real_from_painted() -> None:
    torch.manual_seed(0)
    adversary = Adversary(small_discriminator, weight=0.5, start=10**6)
    for step in range(30):
        adversarial_step(adversary, step)
    batch, discriminator = make_batch(), adversary.discriminator
    assert discriminator is not None
    real = discriminator(torch.cat([batch["image"], batch["contour"]], dim=1))[-1]
    painted = discriminator(torch.cat([0 * batch["image"], batch["contour"]], dim=1))[-1]
    assert real.mean() > painted.mean() + 0.5


def test_without_a_weight_no_discriminator_is_made() -> None:
    def refuse() -> nn.Module:
        raise AssertionError("made")

    adversary = Adversary(refuse, weight=0)
    assert adversary.discriminator is None
    assert adversary.state_dict() == {}
    adversary.load_state_dict({})
    with pytest.raises(ValueError, match="of a training with an adversary, got adversarial_weight"):
        adversary.load_state_dict(Adversary(small_discriminator).state_dict())
    with pytest.raises(ValueError, match="of a training with none, got adversarial_weight"):
        Adversary(small_discriminator).load_state_dict({})


def test_an_adversary_is_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    engine = Engine(lambda engine, batch: None)
    Adversary(small_discriminator, weight=0).attach(engine)
    with pytest.raises(ValueError, match=r"expected one process .* got 2; leave out multi_gpu"):
        Adversary(small_discriminator).attach(engine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in ``mr``, and the weights of a cascade."""
    folder = tmp_path_factory.mktemp("one_step")
    make_mr(folder / "mr")
    torch.save(drawn(1, **COARSE).state_dict(), folder / "coarse.pt")
    torch.save(drawn(2, **REFINER).state_dict(), folder / "refiner.pt")
    return folder


def plan_of(folder: Path, **changes: object) -> dict[str, Any]:
    return {
        "datalist": "index.csv",
        "contrasts": {"t1": "mr[0-2].nii.gz", "t2": "*"},
        "initial_weights": str(folder / "refiner.pt"),
        "coarse_path": str(folder / "coarse.pt"),
        "network_def": {**TINY_NETWORK, **REFINER},
        "coarse_def": {**TINY_NETWORK, **COARSE},
        "image_size_px": [32, 32],
        "shift_px": 6,
        "min_object_mm2": 100.0,
        "filter_classes": 3,
        "batch_size": 2,
        "epoch_length": 2,
        "max_epochs": 2,
        "warmup_steps": 1,
        "val_interval": 1,
        "picture_interval": 2,
        "adversarial_start": 1,
        "acceleration": None,
        "device": "$torch.device('cpu')",
        "logging_file": False,
        **changes,
    }


OVERLAYS = ["train_refiner", "train_one_step"]


def workflow_of(
    folder: Path, output_dir: Path, overlays: Sequence[str] = OVERLAYS, **changes: object
) -> ConfigWorkflow:
    plan = plan_of(folder, dataset_dir=str(folder / "mr"), output_dir=str(output_dir), **changes)
    files = config_files(base="train", overlays=overlays)
    workflow = ConfigWorkflow(files, workflow_type="train", **plan)
    workflow.initialize()
    return workflow


def tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a checkpoint, by its place."""
    if isinstance(content, Tensor):
        yield name, content
    if isinstance(content, dict):
        for key, value in content.items():
            yield from tensors(value, f"{name}.{key}")


@pytest.mark.slow
def test_a_resumed_training_equals_an_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    """Network, average, discriminator and both optimizers; the teacher stays, and the weights are a refiner's."""
    workflow = workflow_of(folder, tmp_path / "whole")
    workflow.run()
    start = torch.load(folder / "refiner.pt", weights_only=True)
    teacher = workflow.parser.get_parsed_content("teacher").network.state_dict()
    student = load_weights(drawn(0, **REFINER), tmp_path / "whole" / "model.pt").state_dict()
    for key, value in start.items():
        assert torch.equal(teacher[key], value), key
    assert any(not torch.equal(student[key], value) for key, value in start.items())
    assert (tmp_path / "whole" / "translations_00002.png").stat().st_size > 1000

    parts = tmp_path / "parts"
    workflow = workflow_of(folder, parts)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), trainer.terminate)
    workflow.run()
    torch.manual_seed(12345)
    train(folder / "mr", parts, overlays=OVERLAYS, resume=True, **plan_of(folder))
    expected = torch.load(tmp_path / "whole" / "checkpoint_epoch=2.pt", weights_only=True)
    got = torch.load(parts / "checkpoint_epoch=2.pt", weights_only=True)
    resumed = dict(tensors(got))
    names = []
    for name, value in tensors(expected):
        assert torch.equal(value, resumed[name]), name
        names.append(name)
    assert resumed.keys() == set(names)
    for part in (".network.", ".ema.", ".optimizer.", ".adversary.discriminator."):
        assert any(name.startswith(part) for name in names), part
    assert any(name.startswith(".adversary.optimizer.") for name in names)


def test_a_student_of_another_architecture_starts_from_drawn_weights(
    folder: Path, tmp_path: Path
) -> None:
    """It folds more pixels than its teacher, which has the given weights, and is asked for edges on contours."""
    student_def = {**TINY_NETWORK, **REFINER, "patch_size": 4}
    teacher_def = {**TINY_NETWORK, **REFINER}
    workflow = workflow_of(
        folder,
        tmp_path,
        [*OVERLAYS, "train_small_refiner"],
        network_def=student_def,
        teacher_def=teacher_def,
        max_epochs=1,
        val_interval=1,
    )
    workflow.run()
    parsed = workflow.parser.get_parsed_content
    teacher = parsed("teacher").network.state_dict()
    start = torch.load(folder / "refiner.pt", weights_only=True)
    assert all(torch.equal(teacher[key], value) for key, value in start.items())
    assert parsed("loss").contour_weight == 0.3
    student = ContourUNet(**{**TINY_ARGUMENTS, "patch_size": 4}, **REFINER)
    load_weights(student, tmp_path / "model.pt")


@pytest.mark.slow
def test_without_an_adversary_the_checkpoint_has_none(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder, adversarial_weight=0, max_epochs=1)
    train(folder / "mr", tmp_path, overlays=OVERLAYS, **plan)
    checkpoint = torch.load(tmp_path / "checkpoint_epoch=1.pt", weights_only=True)
    assert checkpoint["adversary"] == {}
    assert list(checkpoint["optimizer"]["param_groups"][0]["betas"]) == [0.9, 0.999]
    plan = plan_of(folder, adversarial_weight=0.1)
    with pytest.raises(ValueError, match="the checkpoint is of a training with none"):
        train(folder / "mr", tmp_path, overlays=OVERLAYS, resume=True, **plan)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("teacher_steps", 0, "expected teacher_steps to be a whole number from 1 to 1000, got 0"),
        ("teacher_steps", 1001, "expected teacher_steps to be a whole number from 1 to 1000"),
        ("adversarial_weight", -1, "expected adversarial_weight to be a number from 0"),
        ("contour_magnitude", 0, "expected contour_magnitude to be a number from 0.001"),
        ("contour_weight", -1, "expected contour_weight to be a number from 0"),
        ("adversarial_start", 1.5, "expected adversarial_start to be a whole number"),
        ("initial_weights", None, "expected weights of the first in coarse_path and of the second"),
        ("coarse_path", "absent.pt", "expected weights at absent.pt, found none"),
        ("acceleration", "fast", "acceleration must be one of"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    name: str, value: object, message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(folder / "mr", tmp_path, overlays=OVERLAYS, **plan_of(folder, **{name: value}))

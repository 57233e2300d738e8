# SPDX-License-Identifier: Apache-2.0
"""Distil the second network of a cascade: in one step it learns to paint what it painted in several."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.engines import PrepareBatch, default_prepare_batch
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.losses import PatchAdversarialLoss
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.networks.schedulers import Scheduler
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from torch.nn.functional import l1_loss, pixel_unshuffle

from contourdiff.inference.acceleration import Accelerator
from contourdiff.inference.denoiser import refiner_conditions
from contourdiff.limits import SettingError, check_number, check_whole
from contourdiff.sampling.intensity import to_gray_levels
from contourdiff.sampling.sampler import Sampler
from contourdiff.sampling.solvers import clean_image
from contourdiff.training.inferer import batch_noise, in_bfloat16
from contourdiff.weights import load_weights

MAGNITUDE_EPSILON = 1e-6
"""Gray levels squared: with it the root has a derivative where the image is flat."""


def frozen(
    network: nn.Module, path: str | Path | None, device: torch.device | str | None = None
) -> nn.Module:
    """Copy of a network with the weights of ``path``, in evaluation mode; the given network stays as it is.

    Raises ``ValueError`` without a path; other errors are those of [`contourdiff.weights.load_weights`][].
    """
    if not path:
        raise SettingError(
            "one step is learned from trained networks: expected weights of the first in coarse_path and of the second "
            f"in initial_weights, got {path!r}; leave both out for those of the bundle"
        )
    return load_weights(copy.deepcopy(network), path, device)


@dataclass(eq=False)
class FrozenPainter:
    """A trained network and its sampler, which learn nothing: from noise and conditions to clean images.

    Args:
        network: of the first or the second step of a cascade.
        scheduler: of its training.
        steps: of DDIM, from 1 to the number of training timesteps, or ``ValueError``.
        amp: bfloat16.
        acceleration: see [`contourdiff.inference.acceleration.Accelerator`][].
    """

    network: nn.Module
    scheduler: Scheduler
    steps: int = 1
    amp: bool = False
    acceleration: str | None = None

    def __post_init__(self) -> None:
        check_whole("teacher_steps", self.steps, 1, self.scheduler.num_train_timesteps)
        self.sampler = Sampler(self.scheduler, num_inference_steps=self.steps)
        self.accelerator = Accelerator(self.acceleration)

    @torch.no_grad()
    def __call__(self, noise: Tensor, conditions: Tensor, **keywords: Tensor) -> Tensor:
        """Images ``(B, 1, H, W)`` in [-1, 1] from noise of that shape and conditions ``(B, C, H, W)``.

        ``keywords`` are the network's, such as ``class_labels (B,)``.
        """
        device = noise.device
        forward = self.accelerator(self.network, device, self.amp)

        def predict(x: Tensor, timesteps: Tensor) -> Tensor:
            inputs = torch.cat([x, conditions], dim=1)
            output = forward(inputs, timesteps, **keywords)
            return output.float()

        with self.accelerator.autocast(device, self.amp):
            return self.sampler(predict, lambda: noise)


@dataclass(eq=False)
class OneStepPrepareBatch(PrepareBatch):
    """What the second network is given in a translation, and what the teacher makes of it.

    The first network paints the coarse slice from noise of its own, as in a translation. Teacher and student are given
    the same noise and conditions; the teacher's slice is the target (Luhman and Luhman, "Knowledge Distillation in
    Iterative Generative Models for Improved Sampling Speed", arXiv 2101.02388).

    Args:
        coarse: first network, in a single step.
        teacher: second network as it was before the training, in several steps.
        factor: pixels of the second network along a side of a pixel of the first.
        fixed_seed: the same noise for every batch, for comparable validation losses.
    """

    coarse: FrozenPainter
    teacher: FrozenPainter
    factor: int = 2
    fixed_seed: int | None = None

    def __call__(
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple[()], dict[str, Tensor]]:
        """Images, targets, nothing, and a dictionary of noise and conditions.

        ``image (B, 1, H, W)`` of the batch is in [-1, 1], the first channel of ``contour (B, C, H, W)`` is the contour;
        for several contrasts, ``contrast (B,)`` are the class labels of the first network. Images and noise are ``(B,
        1, H, W)``, targets ``(B, 2, H, W)``: the teacher's slice and the contour. Conditions are ``(B, 2, H, W)``:
        contour and enlarged coarse slice.
        """
        images, _ = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
        images = convert_to_tensor(images, track_meta=False)
        contours = contours_of(batchdata).to(images)
        keywords = {}
        if "contrast" in batchdata:
            labels = torch.as_tensor(batchdata["contrast"])
            keywords["class_labels"] = labels.to(images.device)
        folded = pixel_unshuffle(contours, self.factor)
        coarse_seed = None
        if self.fixed_seed is not None:
            coarse_seed = self.fixed_seed + 1  # noise of its own
        coarse_noise = batch_noise(folded[:, :1], coarse_seed)
        noise = batch_noise(images, self.fixed_seed)
        coarse = self.coarse(coarse_noise, folded, **keywords)
        gray_levels = to_gray_levels(coarse)
        conditions = refiner_conditions(contours, gray_levels, self.factor)
        taught = self.teacher(noise, conditions)
        targets = torch.cat([taught, contours], dim=1)
        return images, targets, (), {"noise": noise, "condition": conditions}


@dataclass(eq=False)
class OneStepInferer(Inferer):
    """The clean image of a single evaluation, at the last training timestep, as a translation in one step has it.

    ``amp`` runs the network under autocast in bfloat16, on any device.
    """

    scheduler: Scheduler
    amp: bool = False

    def __post_init__(self) -> None:
        sampler = Sampler(self.scheduler, num_inference_steps=1)
        self.level = sampler.schedule[0]

    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: nn.Module, noise: Tensor, condition: Tensor
    ) -> Tensor:
        """Images ``(B, 1, H, W)`` in [-1, 1], float32; ``inputs`` are not looked at, for one step starts from noise."""
        count = noise.shape[:1]
        timesteps = torch.full(count, self.level.timestep, device=noise.device)
        noisy = torch.cat([noise, condition], dim=1)
        with in_bfloat16(noise, self.amp):
            output = network(noisy, timesteps)
        prediction = output.float()
        prediction_type = str(self.scheduler.prediction_type)
        return clean_image(prediction, noise, self.level.alpha_bar, prediction_type)


@dataclass(eq=False)
class OneStepLoss:
    """Loss of slices painted in one step: [`sharp_loss`][], and what gradients lack where a contour is given.

    On a contour, Canny's gradient magnitude is at least a threshold. Where that of the painted slice is lower, the edge
    is missing in its own contour: ``contour_weight`` times the mean of what it lacks, as a share of the threshold.

    Args:
        contour_weight: 0 for none.
        sigma_px: of [`contourdiff.contours.contour_of`][].
        magnitude: in gray levels, the threshold.

    Raises ``ValueError`` for a weight below 0, or a threshold that is not above it.
    """

    contour_weight: float = 0.0
    sigma_px: float = 1.5
    magnitude: float = 40.0

    def __post_init__(self) -> None:
        check_number("contour_weight", self.contour_weight, 0)
        check_number("contour_magnitude", self.magnitude, 1e-3)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Loss of ``images (B, 1, H, W)`` in [-1, 1]; ``targets (B, 2, H, W)`` are of [`OneStepPrepareBatch`][]."""
        taught, contours = targets[:, :1], targets[:, 1:]
        loss = sharp_loss(images, taught)
        if self.contour_weight == 0:
            return loss
        gray_levels = 127.5 * (images.float() + 1)
        lacking = 1 - gradient_magnitude(gray_levels, self.sigma_px) / self.magnitude
        on_contours = lacking.clamp(min=0) * contours
        return loss + self.contour_weight * on_contours.sum() / contours.sum().clamp(min=1)


def gradient_magnitude(images: Tensor, sigma_px: float) -> Tensor:
    """Gradient magnitude that Canny's thresholds are compared with, differentiable: ``(B, C, H, W)`` -> the same shape.

    Sobel's after a Gaussian, as in [`contourdiff.contours.contour_of`][] but at the border, beyond which images are
    reflected.
    """
    gaussian = gaussian_1d(torch.tensor(sigma_px), approx="sampled", normalize=True)
    smooth = separable_filtering(images, [gaussian, gaussian], mode="reflect")
    across = torch.tensor([1.0, 2.0, 1.0])
    along = torch.tensor([-1.0, 0.0, 1.0])
    rows = separable_filtering(smooth, [along, across], mode="reflect")
    columns = separable_filtering(smooth, [across, along], mode="reflect")
    return (rows**2 + columns**2 + MAGNITUDE_EPSILON).sqrt()


def sharp_loss(images: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference of images ``(B, 1, H, W)``, and of the differences of adjacent pixels on both axes."""
    loss = l1_loss(images, targets)
    for axis in (-2, -1):
        edges = torch.diff(images, dim=axis)
        target_edges = torch.diff(targets, dim=axis)
        loss = loss + l1_loss(edges, target_edges)
    return loss


@dataclass(eq=False)
class Adversary:
    """Handler that sets a discriminator against the network of a ``SupervisedTrainer``, with the loss of LSGAN.

    The discriminator learns to tell real slices with their contours from painted ones. The network's loss has in
    addition ``weight`` times the distance of its slices to "real". The discriminator is a part of the checkpoint.

    Args:
        make_discriminator: makes a network of ``(B, 2, H, W)``, slice and contour, that returns a list whose last item
            is its output, as MONAI's ``PatchDiscriminator`` does.
        weight: of the adversarial loss; with 0 no discriminator is made.
        start: steps of the training before the network learns from the discriminator, which learns from the first.
        relative_rate: learning rate of the discriminator, in those of the network.
        device: of the discriminator.
        amp: autocast in bfloat16, on any device.

    Raises ``ValueError`` for a value out of range, for several processes, and for a checkpoint of a training with an
    adversary if this one has none, or the reverse.

    References:
        Mao et al., "Least Squares Generative Adversarial Networks", ICCV 2017; Isola et al., "Image-to-Image
        Translation with Conditional Adversarial Networks", CVPR 2017, for the discriminator of patches.
    """

    make_discriminator: Callable[[], nn.Module]
    weight: float = 0.02
    start: int = 100
    relative_rate: float = 2.0
    device: torch.device | str = "cpu"
    amp: bool = False

    def __post_init__(self) -> None:
        check_number("adversarial_weight", self.weight, 0)
        check_whole("adversarial_start", self.start, 0, 10**9)
        self.discriminator: nn.Module | None = None
        if self.weight == 0:
            return
        discriminator = self.make_discriminator()
        self.discriminator = discriminator.to(self.device)
        parameters = self.discriminator.parameters()
        self.optimizer = torch.optim.AdamW(parameters, betas=(0.5, 0.99))
        self.loss = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        if self.discriminator is None:
            return
        if idist.get_world_size() > 1:
            raise ValueError(
                f"expected one process for a training with an adversary, got {idist.get_world_size()}; leave out "
                "multi_gpu_train, or set adversarial_weight to 0"
            )
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add_loss, self.discriminator)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._learn, self.discriminator)

    def state_dict(self) -> dict[str, Any]:
        """Discriminator and its optimizer, for a checkpoint."""
        if self.discriminator is None:
            return {}
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a checkpoint."""
        if bool(state) != (self.discriminator is not None):
            had = "an adversary" if state else "none"
            raise ValueError(
                f"the checkpoint is of a training with {had}, got adversarial_weight {self.weight}; resume with the "
                "settings of that training"
            )
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.optimizer.load_state_dict(state["optimizer"])

    def _add_loss(self, engine: Any, discriminator: nn.Module) -> None:
        """Add the adversarial loss to the network's, before its backward pass."""
        if engine.state.iteration <= self.start:
            return
        discriminator.requires_grad_(False)
        output = engine.state.output
        judgement = self._judge(discriminator, output["pred"], engine.state.batch)
        distance = self.loss(judgement, target_is_real=True, for_discriminator=False)
        output["loss"] = output["loss"] + self.weight * distance

    def _learn(self, engine: Any, discriminator: nn.Module) -> None:
        """One step of the discriminator, after that of the network."""
        discriminator.requires_grad_(True)
        output = engine.state.output
        painted = output["pred"].detach()
        on_real = self._judge(discriminator, output["image"], engine.state.batch)
        on_painted = self._judge(discriminator, painted, engine.state.batch)
        loss_of_real = self.loss(on_real, target_is_real=True, for_discriminator=True)
        loss_of_painted = self.loss(on_painted, target_is_real=False, for_discriminator=True)
        loss = 0.5 * (loss_of_real + loss_of_painted)
        (settings,) = engine.optimizer.param_groups
        (own_settings,) = self.optimizer.param_groups
        own_settings["lr"] = self.relative_rate * settings["lr"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _judge(
        self, discriminator: nn.Module, images: Tensor, batchdata: Mapping[str, Tensor]
    ) -> Tensor:
        contours = contours_of(batchdata)
        contours = contours.to(images)
        pairs = torch.cat([images, contours], dim=1)
        with in_bfloat16(images, self.amp):
            outputs = discriminator(pairs)
        judgement = outputs[-1]
        return judgement.float()  # type: ignore[no-any-return]


def contours_of(batchdata: Mapping[str, Tensor]) -> Tensor:
    """Contours of a batch, ``(B, 1, H, W)``: the first channel, others are further conditions."""
    contours: Tensor = convert_to_tensor(batchdata["contour"], track_meta=False)
    return contours[:, :1]

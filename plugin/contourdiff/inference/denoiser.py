# SPDX-License-Identifier: Apache-2.0
"""The engine: one fixed batch of candidates at a time, from their noise to gray levels."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks.schedulers import Scheduler
from torch import nn

from contourdiff.inference.convolutions import with_fewer_multiplications
from contourdiff.sampling.noise import CandidateKey, NoiseStream
from contourdiff.sampling.solvers import ddim, ddpm, dpm_solver

logger = logging.getLogger(__name__)

SOLVERS = ("ddim", "ddpm", "dpm_solver")
ACCELERATIONS = (None, "lean", "trace", "compile")
Item = tuple[str, int, int, int]
"""(case, slice, round, candidate)"""
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Accelerator:
    """A network made fast once, and kept until another network or other weights come.

    Changed weights are seen by the version that torch counts for every tensor, which optimizers, averages and
    ``load_state_dict`` raise. So a translation inside a training never goes on with old weights, and a folder of
    volumes is not traced anew for each; what a trace holds is not freed completely when it is dropped.

    Args:
        acceleration: one of ``ACCELERATIONS``, see :class:`Denoiser`.

    Raises:
        ValueError: for another one.
    """

    def __init__(self, acceleration: str | None = None) -> None:
        if acceleration not in ACCELERATIONS:
            raise ValueError(f"acceleration must be one of {ACCELERATIONS}, got {acceleration!r}")
        self.acceleration = acceleration
        self._network: Forward | None = None
        self._versions: list[tuple[int, int]] = []
        self._forward: Forward | None = None

    def __call__(self, network: Forward, inputs: torch.Tensor, timesteps: torch.Tensor) -> Forward:
        """What to call in place of ``network``, for inputs like these."""
        if self.acceleration is None:
            return network
        if self._forward is None or network is not self._network or _versions(network) != self._versions:
            self._forward = None  # frees the old one before the new one is made
            self._forward = accelerated(network, self.acceleration, inputs, timesteps)  # type: ignore[arg-type]
            self._network, self._versions = network, _versions(network)
        return self._forward


def _versions(network: Forward) -> list[tuple[int, int]]:
    state = network.state_dict(keep_vars=True).values() if isinstance(network, nn.Module) else ()
    return [(id(value), 0 if value.is_inference() else value._version) for value in state]


class Denoiser:
    """Denoise candidates in batches of exactly ``batch_size``; one item's result depends on nothing else in its batch.

    Contours are written once for a batch, into the buffer that the network reads; coefficients and timesteps are made
    once for a chain; no step waits for the device.

    Args:
        network: called with ``(cat[x, conditions] (B, 1 + C, H, W), timesteps (B,))``.
        scheduler: noise scheduler of the training: its ``alphas_cumprod`` and ``prediction_type`` are used.
        solver: one of ``SOLVERS``.
        num_inference_steps: network calls a chain; ``"ddpm"`` ignores it and the next.
        eta: DDIM's noise.
        batch_size: items in every call of the network; a smaller batch is padded. Halved, with a line in the log, when
            the device has not the memory.
        seed: seed of the noise.
        noise_weights: see :class:`contourdiff.sampling.noise.NoiseStream`.
        amp: run the network in bfloat16 where autocast holds it safe.
        acceleration: ``"lean"`` puts the network into channels-last layout and, on CPUs in float32, runs a copy whose
            convolutions take fewer multiplications, see :mod:`contourdiff.inference.convolutions`; ``"trace"`` traces
            and freezes that copy, a little faster for small networks and twice the memory for big ones;
            ``"compile"`` hands the network to ``torch.compile`` with CUDA graphs; ``None`` takes it as it is.
        accelerator: what was made of the network before, to be used again; it takes the place of ``acceleration``.

    Raises:
        ValueError: for an unknown solver or acceleration, or a batch size below 1.
    """

    def __init__(
        self,
        network: nn.Module,
        scheduler: Scheduler,
        *,
        solver: str = "ddim",
        num_inference_steps: int = 50,
        eta: float = 0.0,
        batch_size: int = 8,
        seed: int = 0,
        noise_weights: Sequence[float] = (1.0,),
        amp: bool = False,
        acceleration: str | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {SOLVERS}, got {solver!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        self.network = network
        self.scheduler = scheduler
        self.solver = solver
        self.num_inference_steps = num_inference_steps
        self.eta = eta
        self.batch_size = batch_size
        self.seed = seed
        self.noise_weights = tuple(noise_weights)
        self.amp = amp
        self.accelerator = Accelerator(acceleration) if accelerator is None else accelerator
        self.calls = 0
        self._white: dict[torch.Size, dict[CandidateKey, torch.Tensor]] = {}  # of the last batch

    @torch.inference_mode()
    def fit(self, conditions: torch.Tensor) -> int:
        """Set ``batch_size`` to what fits into the free memory of a CUDA device, for ``conditions (N, C, H, W)``."""
        device = conditions.device

        def needed(items: int) -> int:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            buffer = torch.zeros(items, 1 + conditions.shape[1], *conditions.shape[2:], device=device)
            with self._autocast(device):
                self.network(buffer, torch.zeros(items, dtype=torch.long, device=device))
            return int(torch.cuda.max_memory_allocated(device)) - before

        self.batch_size = fitting_batch_size(needed, torch.cuda.mem_get_info(device)[0])
        logger.info("batch_size is %d, from the free memory of %s", self.batch_size, device)
        return self.batch_size

    @torch.inference_mode()
    def __call__(self, conditions: torch.Tensor, items: Sequence[Item]) -> torch.Tensor:
        """Gray levels in [0, 255], ``(N, H, W)``, for ``conditions (N, C, H, W)`` and what names each one's noise."""
        images = []
        start = 0
        while start < len(items):
            stop = start + self.batch_size
            try:
                images.append(self._batch(conditions[start:stop], items[start:stop]))
            except torch.OutOfMemoryError:
                self._halve()
            else:
                start = stop
        return torch.cat(images)

    def _batch(self, conditions: torch.Tensor, items: Sequence[Item]) -> torch.Tensor:
        missing = self.batch_size - len(items)
        padded = [*items, *[items[0]] * missing]
        conditions = torch.cat([conditions, conditions[:1].expand(missing, -1, -1, -1)])
        device, size = conditions.device, conditions.shape[2:]
        keys = [CandidateKey(self.seed, *item) for item in padded]
        noise = NoiseStream(keys, (1, *size), device, self.noise_weights, self._white.get(size))
        shape = (self.batch_size, 1 + conditions.shape[1], *size)
        layout = torch.channels_last if self.accelerator.acceleration else torch.contiguous_format
        buffer = torch.empty(shape, device=device, memory_format=layout)
        buffer[:, 1:] = conditions

        buffer[:, :1] = 0
        with self._autocast(device):
            start = torch.zeros(self.batch_size, dtype=torch.long, device=device)
            forward = self.accelerator(self.network, buffer, start)

        def predict(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            buffer[:, :1] = x
            with self._autocast(device):
                # a copy, for a CUDA graph writes the next step's result into the same memory
                return forward(buffer, timesteps).to(torch.float32, copy=True)

        self.calls += 1
        images = self._solve(predict, noise)
        self._white = {size: noise.first}
        return ((images[: len(items), 0] + 1) * 127.5).clamp(0, 255)

    def _solve(self, predict: Forward, noise: NoiseStream) -> torch.Tensor:
        common: dict[str, Any] = {
            "alphas_cumprod": self.scheduler.alphas_cumprod,
            "prediction_type": str(self.scheduler.prediction_type),
        }
        if self.solver == "ddpm":
            return ddpm(predict, noise.draw(), draw=noise.draw, **common)
        common["num_inference_steps"] = self.num_inference_steps
        if self.solver == "dpm_solver":
            return dpm_solver(predict, noise.draw(), **common)
        return ddim(predict, noise.draw(), eta=self.eta, draw=noise.draw, **common)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.amp, cache_enabled=False)

    def _halve(self) -> None:
        if self.batch_size == 1:
            raise MemoryError(
                "one slice does not fit into the device's memory; expected room for a batch of 1; take a smaller "
                "network, a larger spacing_mm, or device cpu"
            )
        self.batch_size //= 2
        logger.warning("out of memory: batch_size is %d from here on", self.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def fitting_batch_size(needed: Callable[[int], int], free: int, largest: int = 64, share: float = 0.8) -> int:
    """Largest power of two up to ``largest`` whose forward pass takes at most a ``share`` of the ``free`` bytes.

    Args:
        needed: bytes that a forward pass of so many items takes at its peak; asked for 1 and 2.
        free: bytes.
        largest: upper limit.
        share: of the free bytes that may be taken.
    """
    one, two = needed(1), needed(2)
    item = max(two - one, 1)
    fitting = int((share * free - (one - item)) // item)
    return int(2 ** (max(1, min(fitting, largest)).bit_length() - 1))


def accelerated(network: nn.Module, acceleration: str | None, inputs: torch.Tensor, timesteps: torch.Tensor) -> Forward:
    """Network to call in place of ``network``, for inference with its present weights.

    The weights are put into channels-last order, in place. A network that cannot be traced or compiled, such as one
    that branches on values, is left as it is, and the log says so.
    """
    if acceleration is None:
        return network
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    if acceleration == "compile":
        return _compiled(network, inputs, timesteps)
    lean = with_fewer_multiplications(network) if _in_float32_on_cpu(inputs) else network
    if acceleration == "lean":
        return lean
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what tracing says of sizes that become constants: sizes stay the same here
        try:
            traced = torch.jit.trace(lean, (inputs[:1], timesteps[:1]), check_trace=False)
            with contextlib.suppress(RuntimeError):  # a network in training mode cannot be frozen
                traced = torch.jit.freeze(traced)
        except Exception as error:
            logger.info("the network is not traced: %s", str(error).strip().split("\n")[0])
            return lean
    answer: Forward = traced
    return answer


def _compiled(network: nn.Module, inputs: torch.Tensor, timesteps: torch.Tensor) -> Forward:
    """The network through ``torch.compile``, or as it is where that fails, as without a compiler on the machine."""
    compiled: Forward = torch.compile(network, mode="reduce-overhead")
    try:
        compiled(inputs, timesteps)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        logger.warning("the network is not compiled: %s", str(error).strip().split("\n")[0])
        return network
    return compiled


def _in_float32_on_cpu(inputs: torch.Tensor) -> bool:
    return inputs.device.type == "cpu" and not torch.is_autocast_enabled("cpu")

# SPDX-License-Identifier: Apache-2.0
"""A network run by OpenVINO on the CPU, converted in memory."""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from contourdiff.networks import size_divisor_of

logger = logging.getLogger(__name__)

COMPILED_MODELS = 4  # shapes for which a network stays compiled
TOLERANCE = 0.05  # mean difference to torch, as a share of the mean; bfloat16 differs by 0.005
TRACED_SIDE = 4  # multiples of the size that a network requires


class OpenVinoNetwork:
    """Callable in place of a network on the CPU, with its present weights; results differ by rounding alone.

    The network is traced once, and compiled for each shape of its inputs: with static shapes OpenVINO was 1.2 to 2
    times as fast as with dynamic ones. The last shapes stay compiled. Of its threads there are as many as torch has.
    A network that cannot be converted, or gives another result where its code depends on values, which a trace does not
    see, is called as it is, with a warning in the log.

    Args:
        network: called with ``(x (B, C, H, W), timesteps (B,))``, and with ``class_labels (B,)`` where there are some.
        half: multiply in bfloat16, which needs a processor with [`has_bfloat16`][]; otherwise in float32.
    """

    def __init__(self, network: nn.Module, half: bool = False) -> None:
        self._network = network
        self._half = half
        self._model: Any = None
        self._requests: OrderedDict[tuple[torch.Size, ...], Any] = OrderedDict()

    def __call__(self, x: Tensor, timesteps: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The network's output, ``(B, C', H, W)`` float32."""
        inputs = [x.float(), timesteps.long()]
        if class_labels is not None:
            inputs.append(class_labels.long())
        if self._model is None:
            return self._first(inputs)
        if self._model is False:
            return _output(self._network, *inputs)
        return self._infer(inputs)

    def _infer(self, inputs: list[Tensor]) -> Tensor:
        arrays = [value.contiguous().numpy() for value in inputs]
        outputs = self._request(inputs).infer(arrays, share_inputs=True, share_outputs=True)
        return torch.from_numpy(outputs[0].copy())

    def _first(self, inputs: list[Tensor]) -> Tensor:
        """Convert the network, and compare its first result with torch's."""
        try:
            # Ctrl-C is the main thread's: in a callback of OpenVINO it would be a failed conversion
            with ThreadPoolExecutor(1) as another_thread:
                self._model = another_thread.submit(_converted, self._network, inputs).result()
            outputs = self._infer(inputs)
        except Exception as error:  # errors of OpenVINO share no class
            return self._refused(inputs, str(error).splitlines()[0])
        first_item = [value[:1] for value in inputs]
        expected = _output(self._network, *first_item).float()
        distance = (outputs[:1] - expected).abs().mean()
        difference = float(distance / (expected.abs().mean() + 1e-6))
        if not difference < TOLERANCE:
            return self._refused(inputs, f"its result differs by {100 * difference:.0f} %")
        return outputs

    def _refused(self, inputs: list[Tensor], reason: str) -> Tensor:
        logger.warning(
            "OpenVINO does not run this network, torch does, which is slower: %s", reason
        )
        self._model = False
        self._requests.clear()
        return _output(self._network, *inputs)

    def _request(self, inputs: list[Tensor]) -> Any:
        """A compiled model for inputs of these shapes."""
        shapes = tuple(value.shape for value in inputs)
        if shapes not in self._requests:
            if len(self._requests) == COMPILED_MODELS:
                self._requests.popitem(last=False)
            self._requests[shapes] = self._compiled(inputs)
        self._requests.move_to_end(shapes)
        return self._requests[shapes]

    def _compiled(self, inputs: list[Tensor]) -> Any:
        shapes = {position: list(value.shape) for position, value in enumerate(inputs)}
        self._model.reshape(shapes)
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if self._half else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # processes that share the cases would meet on one core
            "ENABLE_HYPER_THREADING": True,
        }
        compiled = _core().compile_model(self._model, "CPU", options)
        return compiled.create_infer_request()


def _output(
    network: nn.Module, x: Tensor, timesteps: Tensor, class_labels: Tensor | None = None
) -> Tensor:
    """A network's output for arguments by position, as a trace requires them."""
    if class_labels is None:
        return network(x, timesteps)  # type: ignore[no-any-return]
    return network(x, timesteps, class_labels=class_labels)  # type: ignore[no-any-return]


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16 (avx512_bf16 or amx_bf16)."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@cache
def _core() -> Any:
    """OpenVINO of this process, without its telemetry, which would send an event over the network when it is imported.

    Its CPU plugin gives the thread a signal stack of 20 KB, and unmaps it when the core is freed: with several cores
    the next signal ended the process. So there is one core, and the thread keeps the stack that it had.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not installed
    import openvino

    with _kept_signal_stack():
        core = openvino.Core()
        core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # loads the plugin
    return core


class _SignalStack(ctypes.Structure):
    """``stack_t`` of signal.h, on Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _kept_signal_stack() -> Iterator[None]:
    """Give the thread its signal stack back at the end. Source: sigaltstack(2)."""
    if not sys.platform.startswith("linux"):
        yield
        return
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before = _SignalStack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)


def _converted(network: nn.Module, inputs: list[Tensor]) -> Any:
    """OpenVINO's model of a network, for inputs of any size; ``openvino.convert_model`` imports the telemetry."""
    _core()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        examples = [value[:1].clone() for value in inputs]
        divisor = size_divisor_of(network)
        if divisor > 1:  # a small slice is traced sooner
            side = TRACED_SIDE * divisor
            examples[0] = examples[0][..., :side, :side]
        constant = deepcopy(network).requires_grad_(False)

        def forward(*values: Tensor) -> Tensor:
            return _output(constant, *values)

        # the trace of a function, whose weights are constants, takes a third of the time of a module's
        traced = torch.jit.trace(forward, tuple(examples), check_trace=False)
        # the model holds no Python object
        decoder = TorchScriptPythonDecoder(traced, shared_memory=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))

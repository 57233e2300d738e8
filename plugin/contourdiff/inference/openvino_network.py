# SPDX-License-Identifier: Apache-2.0
"""A network run by OpenVINO on the CPU, converted in memory."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

COMPILED_MODELS = 4  # shapes for which a network stays compiled


class OpenVinoNetwork:
    """Callable in place of a network on the CPU, with its present weights; results differ by rounding alone.

    The network is traced once, and compiled for each shape of its inputs: with static shapes OpenVINO was 1.2 to 2
    times as fast as with dynamic ones. The last shapes stay compiled. Of its threads there are as many as torch has.

    Args:
        network: called with ``(x (B, C, H, W), timesteps (B,))``, and with ``class_labels (B,)`` where there are some.
        half: multiply in bfloat16, which needs a processor with [`has_bfloat16`][]; otherwise in float32.
    """

    def __init__(self, network: nn.Module, half: bool = False) -> None:
        self._network = _Positional(network)
        self._half = half
        self._model: Any = None
        self._requests: OrderedDict[tuple[torch.Size, ...], Any] = OrderedDict()

    def __call__(self, x: Tensor, timesteps: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The network's output, ``(B, C', H, W)`` float32."""
        inputs = [x.float(), timesteps.long()]
        if class_labels is not None:
            inputs.append(class_labels.long())
        request = self._request(inputs)
        arrays = [value.contiguous().numpy() for value in inputs]
        outputs = request.infer(arrays, share_inputs=True, share_outputs=True)
        return torch.from_numpy(outputs[0].copy())

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
        if self._model is None:
            with ThreadPoolExecutor(
                1
            ) as another_thread:  # Ctrl-C in a callback would be a failed conversion
                self._model = another_thread.submit(_converted, self._network, inputs).result()
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


class _Positional(nn.Module):
    """A network whose arguments are positions, as a trace requires."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timesteps: Tensor, class_labels: Tensor | None = None) -> Tensor:
        if class_labels is None:
            return self.network(x, timesteps)  # type: ignore[no-any-return]
        return self.network(x, timesteps, class_labels=class_labels)  # type: ignore[no-any-return]


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16 (avx512_bf16 or amx_bf16)."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities


@cache
def _core() -> Any:
    """The one core of the process, which is never freed.

    Its CPU plugin gives the thread a stack for signals, and unmaps it when the core is freed. Of several cores that are
    freed in another order, or by another thread, a thread would keep such a stack, and end at the next signal.
    """
    return _openvino().Core()


def _openvino() -> Any:
    """OpenVINO without its telemetry, which would send an event over the network when it is imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not installed
    import openvino

    return openvino


def _converted(network: nn.Module, inputs: list[Tensor]) -> Any:
    """OpenVINO's model of a network, for inputs of any size; ``openvino.convert_model`` imports the telemetry."""
    _openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.inference_mode(False), torch.no_grad():
        examples = tuple(value[:1].clone() for value in inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(network, examples, check_trace=False)
    decoder = TorchScriptPythonDecoder(traced)
    frontend = FrontEndManager().load_by_framework("pytorch")
    return frontend.convert(frontend.load(decoder))

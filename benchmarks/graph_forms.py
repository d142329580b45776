"""Which form of the graph, and which settings of a runtime, are the fastest, and what the engine's own cost.

    python benchmarks/graph_forms.py [ROUNDS]       # default 40; two ConvNeXt-Tiny; some minutes

The form: ConvNeXt's MLP as matrix products on channels-last data (as timm and the bundle have it), or as 1x1
convolutions (timm's `conv_mlp`, the same weights reshaped). The settings, for OpenVINO: edgemed's; the LATENCY hint; no
pinning of threads to cores. All compute in float32, and all have to give the bundle's probabilities before they are
timed, in turn. Beside the latency stands the processor time of a request on one thread, which other programs on the
machine change far less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import keep
from twins import BACKBONE, LABELS, SIZE, twins

from edgemed.allowance import usable_cores
from edgemed.conditions import changes, machine, snapshot, warnings
from edgemed.export import onnx_from_ensemble
from edgemed.phantoms import phantom
from edgemed.timing import interleaved, percentile_intervals, ratio_interval

TOLERANCE = 1e-5
PROCESSOR_ROUNDS = 10
BASE = "openvino, matrix products, edgemed's settings"
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
Call = Callable[[], Any]


def graphs() -> dict[str, bytes]:
    """The ONNX file of each form."""
    import timm

    _, ensemble = twins()
    found = {"matrix products": onnx_from_ensemble(ensemble, image_size=(32, SIZE, 4096))}
    for number, member in enumerate(ensemble.members):
        state = {
            name: value[:, :, None, None] if ".mlp.fc" in name and value.dim() == 2 else value
            for name, value in member.state_dict().items()
        }
        network = timm.create_model(BACKBONE, num_classes=len(LABELS), conv_mlp=True)
        network.load_state_dict(state)
        ensemble.members[number] = network.eval()
    found["1x1 convolutions"] = onnx_from_ensemble(ensemble, image_size=(32, SIZE, 4096))
    return found


def openvino_call(graph: bytes, pixels: Any, settings: dict[str, Any]) -> Call:
    import openvino

    core = openvino.Core()
    model = core.read_model(graph)
    model.reshape({"image": [1, -1, -1, 3]})
    request = core.compile_model(model, "CPU", {**FLOAT32, **settings}).create_infer_request()

    def call() -> Any:
        request.set_input_tensor(openvino.Tensor(pixels, shared_memory=True))
        request.infer(share_outputs=True)
        return request.get_tensor("probabilities").data

    return call


def onnxruntime_call(graph: bytes, pixels: Any, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["probabilities"], {"image": pixels})[0]


def calls(pixels: Any, threads: int, of_form: dict[str, bytes]) -> dict[str, Call]:
    """Everything that is compared, on so many threads."""
    found: dict[str, Call] = {}
    for form, graph in of_form.items():
        ours = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        found[f"openvino, {form}, edgemed's settings"] = openvino_call(graph, pixels, ours)
        hint = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        found[f"openvino, {form}, LATENCY hint"] = openvino_call(graph, pixels, hint)
        unpinned = {**ours, "ENABLE_CPU_PINNING": False}
        found[f"openvino, {form}, not pinned"] = openvino_call(graph, pixels, unpinned)
        found[f"onnxruntime, {form}"] = onnxruntime_call(graph, pixels, threads)
    wanted = found[BASE]().copy()
    for name, call in found.items():
        error = float(np.abs(call() - wanted).max())
        if not error <= TOLERANCE:
            sys.exit(f"{name} differs by {error:.1e}: nothing to time")
    return found


def processor_ms(of_name: dict[str, Call]) -> dict[str, float]:
    """The least processor time of a call."""
    least = dict.fromkeys(of_name, float("inf"))
    for _ in range(PROCESSOR_ROUNDS):
        for name, call in of_name.items():
            begin = time.process_time()
            call()
            least[name] = min(least[name], (time.process_time() - begin) * 1e3)
    return least


def main() -> None:
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    rounds = int(sys.argv[1]) if len(sys.argv) == 2 else 40
    pixels = np.ascontiguousarray(phantom("oval", 0, SIZE, SIZE))[None]
    of_form, cores = graphs(), usable_cores()
    processor = processor_ms(calls(pixels, 1, of_form))
    before = snapshot()
    times = interleaved(calls(pixels, cores, of_form), rounds)
    conditions = changes(before, snapshot())
    document = {
        "network": f"two {BACKBONE} at {SIZE} px, seeded random weights",
        "threads": cores,
        "rounds": rounds,
        "base": BASE,
        "ways": {
            name: {
                "p50_ms": percentile_intervals(samples, (50,))[0].as_dict(),
                "times_base": ratio_interval(samples, times[BASE], paired=True).as_dict(),
                "processor_ms_on_one_thread": processor[name],
            }
            for name, samples in times.items()
        },
        "conditions": conditions,
        "warnings": warnings(machine(), conditions),
    }
    keep("graph-forms", document)


if __name__ == "__main__":
    main()

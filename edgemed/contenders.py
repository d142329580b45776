"""What a user would otherwise do with the same ensemble, each as a call from uint8 pixels to probabilities.

Why: "fast" means nothing beside a slow opponent. Each is what a competent user would write, gets the same pixels and as
many threads (a CPU's runtime beside a plan: all cores), computes in float32 like the bundle, and has to give the
bundle's probabilities before it is timed. One that differs is reported with its error, one that cannot run with the
reason; neither gets a time.

    edgemed bench BUNDLE --compare RUN        # RUN: what the bundle was built from; "none": without PyTorch

All are timed in turn, in an order drawn anew for every round, so that whatever the machine does meets all of them.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgemed.allowance import usable_cores
from edgemed.errors import EdgemedError, GateError, InputError, first_line
from edgemed.gates import TIE_MARGINS, check, compare, default_gates
from edgemed.infer import Model
from edgemed.manifest import sha256_of
from edgemed.runtimes import PlanModule, runtime_module
from edgemed.stats import Interval
from edgemed.timing import interleaved, percentile_intervals, ratio_interval

if TYPE_CHECKING:
    from torch import Tensor

    from edgemed.ensemble import Ensemble

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 (N, H, W, 3) RGB -> probabilities (N, K) float32."""

BUNDLE = "bundle"
EAGER = ("PyTorch eager", "PyTorch eager, channels_last")
COMPILED = "torch.compile"
SEPARATE = "members one by one"
BY_HAND = {"openvino": "OpenVINO by hand", "onnxruntime": "ONNX Runtime by hand"}
MIN_ROUNDS = 20
CHECKED = 4  # golden images that every contender has to answer like the bundle


@dataclass(frozen=True)
class Contender:
    """Another way to the same answer. `prepare` loads and compiles it; it may raise what its libraries raise."""

    name: str
    what: str  # its settings, in words
    prepare: Callable[[], Predict]


def contenders(model: Model, ensemble: Ensemble | None, shape: tuple[int, ...]) -> list[Contender]:
    """Everything that requests of `shape` (N, H, W, 3) to `model` are compared with.

    ensemble: what the bundle was built from; None: those that need it say so when they are prepared.
    """
    on_gpu = isinstance(runtime_module(model.runtime), PlanModule)
    threads = usable_cores() if on_gpu else model.session.threads  # a plan's one thread is no CPU runtime's choice
    device = "cuda" if on_gpu else "cpu"
    torch_ = f"inference_mode, {threads} threads" if device == "cpu" else "inference_mode, on the GPU, without TF32"

    def given() -> Ensemble:
        if model.bundle.manifest.entropy:
            raise InputError("computes no entropy, as this bundle does; compare one that is built without it")
        if ensemble is None:
            raise InputError("needs the run that the bundle was built from: --compare RUN")
        return ensemble

    def network() -> Ensemble:
        return _network(given(), model, device, threads)

    return [
        Contender(EAGER[0], torch_, lambda: _torch_call(network(), device)),
        Contender(EAGER[1], torch_, lambda: _torch_call(_channels_last(network()), device)),
        Contender(COMPILED, f"default mode, static shape, {torch_}", lambda: _compiled(network(), device)),
        Contender(
            SEPARATE,
            f"an engine for each member on {model.runtime}, as edgemed opens one; {threads} threads",
            lambda: _separate(model, given()),
        ),
        Contender(
            BY_HAND["openvino"],
            f"the bundle's ONNX reshaped to {list(shape)}; LATENCY hint, precision hint f32, {threads} threads",
            lambda: _openvino(model, shape, threads),
        ),
        Contender(
            BY_HAND["onnxruntime"],
            f"the bundle's ONNX in a default session, {threads} threads",
            lambda: _onnxruntime(model, threads),
        ),
    ]


def compared(
    model: Model, others: Sequence[Contender], *, batch: int = 1, side: int, seconds: float = 5.0
) -> dict[str, Any]:
    """Check and time `model` and every one of `others` on requests of `batch` images of `side` pixels.

    {"request": shape; "rounds"; "bundle": {"what", "p50_ms"}; "timed": {name: {"what", "max_prob_error", "p50_ms",
    "times_bundle"}}; "not_timed": {name: reason}}. p50_ms and times_bundle, this one's latency over the bundle's, are
    intervals: above 1 the bundle is faster. seconds: for each on average; there are at least `MIN_ROUNDS`.

    Raises GateError where the bundle itself differs from its golden images.
    """
    if model.golden():  # a plan of one size may take none
        model.self_test()
    images = _images(model, side)
    requests = [np.repeat(image[None], batch, axis=0) for image in images]
    wanted = [_bundle_call(model)(request) for request in requests]
    ready: dict[str, Predict] = {BUNDLE: _bundle_call(model)}
    errors, not_timed = dict[str, float](), dict[str, str]()
    for other in others:
        logging.getLogger("edgemed").info("comparing with %s", other.name)  # torch.compile takes minutes
        try:
            predict = other.prepare()
            answers = [predict(request) for request in requests]
            found = compare(np.concatenate(wanted), np.concatenate(answers), tie_margin=TIE_MARGINS[model.precision])
            check(found, default_gates(model.precision), other.name)
        except GateError as error:
            not_timed[other.name] = f"its answers are not the bundle's: {error}"
        except (EdgemedError, ImportError, OSError, RuntimeError) as error:  # torch's and OpenVINO's are RuntimeErrors
            not_timed[other.name] = first_line(error)
        else:
            ready[other.name], errors[other.name] = predict, found.max_prob_error
    calls = {name: _on(predict, requests[0]) for name, predict in ready.items()}
    begin = time.perf_counter()
    for call in calls.values():
        call()
    rounds = max(MIN_ROUNDS, int(seconds * len(calls) / (time.perf_counter() - begin)))
    times = interleaved(calls, rounds)
    what = {other.name: other.what for other in others}
    return {
        "request": list(requests[0].shape),
        "rounds": rounds,
        "bundle": {
            "what": f"{model.runtime} {model.session.version}, {model.precision}, {model.session.threads} threads",
            "p50_ms": _p50(times[BUNDLE]),
        },
        "timed": {
            name: {
                "what": what[name],
                "max_prob_error": errors[name],
                "p50_ms": _p50(times[name]),
                "times_bundle": ratio_interval(times[name], times[BUNDLE], paired=True).as_dict(),
            }
            for name in errors
        },
        "not_timed": not_timed,
    }


def ensemble_of_run(run: Path) -> Ensemble:
    """The ensemble of a finished run, as `edgemed build-engine` takes it. InputError: see `run.load_run`."""
    try:
        from edgemed.run import load_run
    except ImportError as error:
        raise InputError(f"--compare {run} needs the extra train ({error}); or --compare none") from error
    return load_run(run).ensemble


def lines_of(report: dict[str, Any]) -> list[str]:
    """The comparison as lines of text."""
    shape = " x ".join(map(str, report["request"]))
    lines = [f"compared on {shape}, {report['rounds']} rounds in turn; times the bundle's latency, with 95 % intervals"]
    lines.append(f"{'bundle':<30}{report['bundle']['p50_ms']['value']:9.2f} ms  1     {report['bundle']['what']}")
    for name, one in report["timed"].items():
        ratio = Interval(**one["times_bundle"])
        shown = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
        lines.append(f"{name:<30}{one['p50_ms']['value']:9.2f} ms  {shown}  {one['what']}")
    lines += [f"{name:<30}not timed: {reason}" for name, reason in report["not_timed"].items()]
    return lines


def _p50(samples: list[float]) -> dict[str, float | None]:
    return percentile_intervals(samples, (50,))[0].as_dict()


def _on(predict: Predict, request: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: predict(request)


def _images(model: Model, side: int) -> list[NDArray[np.uint8]]:
    """Golden images squashed to (side, side, 3): all of one shape, since a static graph takes no other."""
    shape, golden = (side, side), model.bundle.golden()[:CHECKED]
    return [np.array(Image.fromarray(each.image).resize(shape, Image.Resampling.BILINEAR)) for each in golden]


def _bundle_call(model: Model) -> Predict:
    return lambda pixels: model.predict_pixels(pixels)[0]


def _network(ensemble: Ensemble, model: Model, device: str, threads: int) -> Ensemble:
    """A copy on the device, each layer in the type that the bundle's graph has there: a CPU executes all in float32."""
    import torch

    torch.set_num_threads(threads)
    if device == "cpu":
        return copy.deepcopy(ensemble)
    from edgemed.export import float32_layers
    from edgemed.precision import half_ensemble

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if model.precision == "fp16":
        return half_ensemble(ensemble, float32_layers(model.bundle.read_model("fp16"))).to(device)
    return copy.deepcopy(ensemble).to(device)


def _torch_call(network: Callable[[Tensor], tuple[Tensor, Tensor]], device: str) -> Predict:
    import torch

    @torch.inference_mode()
    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = network(torch.from_numpy(pixels).to(device))[0].cpu().numpy()
        return answer

    return predict


def _channels_last(network: Ensemble) -> Ensemble:
    """The members' weights and pixels with the channels last in memory; the front end stays as it is."""
    import torch

    network.members.to(memory_format=torch.channels_last)
    network.front.register_forward_hook(lambda _, __, pixels: pixels.contiguous(memory_format=torch.channels_last))
    return network


def _compiled(network: Ensemble, device: str) -> Predict:
    import torch

    return _torch_call(torch.compile(network, dynamic=False), device)


def _separate(model: Model, ensemble: Ensemble) -> Predict:
    """An engine of one member's network, temperature included, for each of them; the mean in NumPy."""
    from edgemed.ensemble import Ensemble as Parts
    from edgemed.export import onnx_from_ensemble

    module = runtime_module(model.runtime)
    if isinstance(module, PlanModule):
        raise InputError(f"{model.runtime} takes plans, which a comparison does not build")
    sessions, sides = [], model.bundle.manifest.input.sides
    for member, temperature in zip(ensemble.members, ensemble.temperatures.tolist(), strict=True):
        graph = onnx_from_ensemble(Parts(ensemble.front, [member], [temperature]).eval(), image_size=sides)
        sessions.append(module.open_session(graph, threads=model.session.threads, cache_key=sha256_of(graph)))

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers = [session.run(pixels)["probabilities"] for session in sessions]
        mean: NDArray[np.float32] = np.mean(answers, axis=0, dtype=np.float32)
        return mean

    return predict


def _openvino(model: Model, shape: tuple[int, ...], threads: int) -> Predict:
    from edgemed.runtimes.openvino import imported

    core = imported().Core()
    graph = core.read_model(model.bundle.read_model(model.precision))
    graph.reshape({"image": list(shape)})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # without it, bfloat16 where the CPU can: other answers
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(graph, "CPU", settings).create_infer_request()

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = request.infer({"image": pixels}, share_inputs=True)["probabilities"]
        return answer

    return predict


def _onnxruntime(model: Model, threads: int) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.bundle.read_model(model.precision), options, providers=["CPUExecutionProvider"]
    )

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = session.run(None, {"image": pixels})[0]
        return answer

    return predict

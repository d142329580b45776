"""The ensemble as one ONNX graph: uint8 pixels of any size in, probabilities out.

What ships is this graph and not the network, so it is checked for what silently costs accuracy elsewhere: a LayerNorm
taken apart, a softmax in half precision, an operator of some runtime's own. `edgemed build-engine` writes it:

    edgemed build-engine RUN --out BUNDLE

ConvNeXt's MLPs stay the matrix products that timm writes. As 1x1 convolutions with the same weights, OpenVINO takes 2.5
to 3 % less processor time and ONNX Runtime 9 % less on one CPU; of the latency on two threads OpenVINO saves
8 % (6 to 13; `python benchmarks/graph_forms.py`). Not taken so far: what TensorRT makes of it is not measured.
Nor is the layer scale folded into the weights before it: in half precision, a small factor could round them to 0.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import ModelProto, TensorProto
from torch import nn

from edgemed.ensemble import ENTROPY_PATCH, Ensemble, WithEntropy
from edgemed.errors import GateError, InputError, did_you_mean
from edgemed.images import Sides
from edgemed.manifest import IMAGE_SIZE, MODEL_FILES
from edgemed.precision import half_ensemble
from edgemed.runtimes import ENTROPY, OUTPUTS

OPSET = 20  # the first with Gelu as one operator
FLOAT32_WEIGHT = re.compile(r"members\.\d+\.(.+?)\.layer\.")
"""A weight inside of `precision.Float32`."""
MAX_BATCH = 1024  # a bound that torch.export wants; memory ends earlier
PRECISIONS = tuple(MODEL_FILES)


def onnx_from_ensemble(
    ensemble: Ensemble,
    precision: str = "fp32",
    *,
    image_size: Sides = IMAGE_SIZE,
    keep: Sequence[str] = (),
    entropy: bool = False,
) -> bytes:
    """The ONNX file of an ensemble in evaluation mode, on the CPU.

    Input `image`: uint8 (N, H, W, 3) RGB; outputs `probabilities` (N, K) and `member_probabilities` (N, M, K), float32.
    N is dynamic. `image_size` is min, opt, max of H and W in pixels: dynamic, unless all three are equal. At "fp16"
    the networks are float16 but for what `precision.half_ensemble` keeps, and the layers named in `keep`. entropy: a
    third output, see `ensemble.WithEntropy`. The same ensemble gives the same bytes.

    Raises:
        GateError: the graph is not what it must be.
        InputError: an unknown precision, a range that is none, or a size that has no whole patches for the entropy.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision '{precision}' is unknown.{did_you_mean(precision, PRECISIONS)}")
    low, typical, high = image_size
    if not 1 <= low <= typical <= high:
        raise InputError(f"--image-size {low},{typical},{high} must be min,opt,max with 1 <= min <= opt <= max")
    if ensemble.training:
        raise ValueError("an ensemble is exported in evaluation mode: call eval() first")
    if entropy:
        check_patches(ensemble.front.size)
    computing = half_ensemble(ensemble, keep) if precision == "fp16" else ensemble
    network = WithEntropy(computing).eval() if entropy else computing
    outputs = (*OUTPUTS, ENTROPY) if entropy else OUTPUTS
    dynamic: dict[int, object] = {0: torch.export.Dim("n", min=1, max=MAX_BATCH)}
    if low < high:
        dynamic |= {1: torch.export.Dim("h", min=low, max=high), 2: torch.export.Dim("w", min=low, max=high)}
    sample = torch.zeros(2, low + (low < high), low + (low < high), 3, dtype=torch.uint8)
    with _not_in_place(network), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations: nothing that a user can act on
        program = torch.onnx.export(
            network,
            (sample,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            external_data=False,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_shapes=(dynamic,),
        )
    assert program is not None  # it is, with dynamo=True
    model = plain_graph(program.model_proto)
    norms = sum(isinstance(layer, nn.LayerNorm) for layer in ensemble.modules())
    check_graph(model, layer_norms=norms, outputs=outputs)
    return bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _not_in_place(network: nn.Module) -> Iterator[None]:
    """Activations leave their input as it is: the same numbers, and Lite0's export takes two thirds of the time."""
    layers: list[Any] = [layer for layer in network.modules() if getattr(layer, "inplace", None) is True]
    try:
        for layer in layers:
            layer.inplace = False
        yield
    finally:
        for layer in layers:
            layer.inplace = True


def check_patches(size: int) -> None:
    """Raise InputError unless images of `size` pixels a side are whole patches, which the output `entropy` needs."""
    if size % ENTROPY_PATCH:
        raise InputError(
            f"--with-entropy: the engine resizes to {size} pixels, which are not whole patches of {ENTROPY_PATCH}; "
            f"leave it out, or train at a multiple of {ENTROPY_PATCH}"
        )


def plain_graph(model: ModelProto) -> ModelProto:
    """`model` without the exporter's notes in it: file paths and stack traces of the machine that made it."""
    for message in (model, model.graph, *_annotated(model)):
        message.ClearField("doc_string")
        message.ClearField("metadata_props")
    model.graph.ClearField("value_info")  # shapes of inner values: every reader infers them
    return model


def _annotated(model: ModelProto) -> Iterator[onnx.NodeProto | onnx.TensorProto | onnx.ValueInfoProto]:
    graph = model.graph
    for part in (graph.node, graph.initializer, graph.input, graph.output):
        yield from part


def float32_layers(graph: bytes) -> list[str]:
    """The layers, by timm's names, whose weights an fp16 ONNX file of `onnx_from_ensemble` has in float32."""
    weights = onnx.load_from_string(graph).graph.initializer
    found = (FLOAT32_WEIGHT.match(weight.name) for weight in weights if weight.data_type == TensorProto.FLOAT)
    return sorted({match[1] for match in found if match})


def check_graph(model: ModelProto, *, layer_norms: int, outputs: Sequence[str] = OUTPUTS) -> None:
    """Fail unless the graph has what must be there, and nothing that loses accuracy.

    layer_norms: how many LayerNorm layers the ensemble has; each must be one LayerNormalization on float32.
    outputs: the names that it must have, in this order.

    Raises:
        GateError: naming what is wrong.
    """
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    kinds |= {value.name: value.data_type for value in graph.initializer}
    count = Counter(node.op_type for node in graph.node)

    opsets = {entry.domain: entry.version for entry in model.opset_import}
    _require(opsets == {"": OPSET} and not model.functions, f"it uses operator sets {opsets}, not plain ONNX {OPSET}")
    inputs, found_outputs = [value.name for value in graph.input], [value.name for value in graph.output]
    _require(inputs == ["image"] and kinds["image"] == TensorProto.UINT8, f"its input is {inputs}, not a uint8 image")
    _require(found_outputs == list(outputs), f"its outputs are {found_outputs}")
    _require(all(kinds[name] == TensorProto.FLOAT for name in outputs), "its outputs are not float32")
    found = count["LayerNormalization"]
    _require(found == layer_norms, f"it has {found} LayerNormalization nodes for {layer_norms} layers")
    _require(count["Softmax"] == 1, f"it has {count['Softmax']} Softmax nodes, not one for all members")
    _require(count["Pow"] == 0, "it has a Pow: a LayerNorm or a GELU was taken apart")
    for node in graph.node:
        if node.op_type in {"LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "GlobalAveragePool"}:
            types = {kinds[name] for name in node.input[:1]}
            _require(types == {TensorProto.FLOAT}, f"{node.op_type} '{node.name}' is not float32")
    onnx.checker.check_model(model, full_check=True)


def _require(holds: bool, what_is_wrong: str) -> None:
    if not holds:
        raise GateError(
            f"the exported graph is refused: {what_is_wrong}; report it with the versions of torch and timm"
        )

"""The exported graph: the network's own numbers at any size, and the structure that keeps them right at fp16."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from torch import nn

from edgemed.ensemble import Ensemble
from edgemed.errors import GateError, InputError
from edgemed.export import check_graph, onnx_from_ensemble, plain_graph
from edgemed.precision import FLOAT32_NAMES
from edgemed.preprocess import FrontEnd

SIZE, CLASSES = 64, 3
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3}
SHAPES = [(1, 64, 64), (3, 97, 131), (2, 33, 240), (5, 480, 40)]  # batch, height, width
NETWORKS = {
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 48)}),
    "convnext_linear": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 48)}),
    "resnet": ("resnet18", {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48)}),
    "lite": ("tf_efficientnet_lite0", {}),
}


def ensemble_of(name: str, members: int) -> Ensemble:
    """Random networks, with batch statistics and logits as uneven as after training."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    architecture, options = NETWORKS[name]
    networks = [timm.create_model(architecture, num_classes=CLASSES, **options) for _ in range(members)]
    for layer in (layer for network in networks for layer in network.modules()):
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.normal_(layer.running_mean, 0.0, 0.3)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    front = FrontEnd(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ensemble = Ensemble(front, networks, (0.05, 0.08)[:members]).eval()  # sharp, so that an error shows
    return ensemble


@pytest.fixture(scope="module")
def exported() -> Callable[[str, int, str], tuple[Ensemble, bytes]]:
    made: dict[tuple[str, int, str], tuple[Ensemble, bytes]] = {}

    def get(name: str, members: int, precision: str) -> tuple[Ensemble, bytes]:
        key = (name, members, precision)
        if key not in made:
            ensemble = ensemble_of(name, members)
            made[key] = ensemble, onnx_from_ensemble(ensemble, precision)
        return made[key]

    return get


def _images(n: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "members", "precision"),
    [
        pytest.param("convnext", 2, "fp32", marks=pytest.mark.slow),
        ("convnext_linear", 1, "fp16"),
        pytest.param("resnet", 1, "fp16", marks=pytest.mark.slow),
        ("lite", 1, "fp32"),
    ],
)
def test_both_cpu_runtimes_give_torchs_probabilities_at_every_size(
    exported: Callable[[str, int, str], tuple[Ensemble, bytes]], name: str, members: int, precision: str
) -> None:
    import onnxruntime
    import openvino

    ensemble, graph = exported(name, members, precision)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for shape in SHAPES:
        images = _images(*shape)
        with torch.no_grad():
            want = [part.numpy() for part in ensemble(torch.from_numpy(images))]
        assert want[1].shape == (shape[0], members, CLASSES)
        found = compiled({"image": images})
        names = ("probabilities", "member_probabilities")
        for got in (session.run(names, {"image": images}), [found[output] for output in names]):
            for a, b in zip(got, want, strict=True):
                assert a.dtype == np.float32
                np.testing.assert_allclose(a, b, atol=TOLERANCE[precision], rtol=0)


def test_the_graph_states_its_contract_and_nothing_about_the_machine_that_made_it(
    exported: Callable[[str, int, str], tuple[Ensemble, bytes]],
) -> None:
    _, graph = exported("convnext", 2, "fp32")
    model = onnx.load_from_string(graph)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    (image,) = model.graph.input
    assert image.name == "image" and image.type.tensor_type.elem_type == TensorProto.UINT8
    free = [dimension.dim_param for dimension in image.type.tensor_type.shape.dim]
    assert all(free[:3]) and image.type.tensor_type.shape.dim[3].dim_value == 3
    assert not model.metadata_props and not any(node.metadata_props or node.doc_string for node in model.graph.node)
    for leak in (b".py", b"site-packages", b"File ", b"edgemed.", str(timm.__file__).encode()):
        assert leak not in graph, leak


def test_layer_norms_and_gelus_stay_whole_at_every_precision(
    exported: Callable[[str, int, str], tuple[Ensemble, bytes]],
) -> None:
    for name, members, precision in (("convnext", 2, "fp32"), ("convnext_linear", 1, "fp16")):
        _, graph = exported(name, members, precision)
        count = Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)
        # Per network: one in the stem, three before a stage, one in each of four blocks, one in the head.
        assert count["LayerNormalization"] == 9 * members
        assert count["Gelu"] == 4 * members and count["Erf"] == count["Pow"] == count["Sqrt"] == 0


@pytest.mark.parametrize(
    ("name", "members", "precision", "width"), [("resnet", 1, "fp16", 2), ("convnext", 2, "fp32", 4)]
)
def test_weights_take_two_bytes_at_fp16_and_four_at_fp32(
    exported: Callable[[str, int, str], tuple[Ensemble, bytes]], name: str, members: int, precision: str, width: int
) -> None:
    ensemble, graph = exported(name, members, precision)
    stored = onnx.load_from_string(graph).graph.initializer
    sizes = {name.split(".", 1)[1]: value.numel() for name, value in ensemble.members[0].named_parameters(prefix="0")}
    first = sum(size for name, size in sizes.items() if name.startswith(tuple(f"{outer}." for outer in FLOAT32_NAMES)))
    wanted = members * (width * (sum(sizes.values()) - first) + 4 * first)  # the first layers stay in fp32
    assert wanted * 0.95 < sum(len(value.raw_data) for value in stored) < wanted * 1.05


def test_the_same_ensemble_gives_the_same_bytes(exported: Callable[[str, int, str], tuple[Ensemble, bytes]]) -> None:
    ensemble, graph = exported("resnet", 1, "fp16")
    assert onnx_from_ensemble(ensemble, "fp16") == graph


def test_a_fixed_image_size_is_fixed_in_the_graph() -> None:
    graph = onnx_from_ensemble(ensemble_of("resnet", 1), image_size=(96, 96, 96))
    shape = onnx.load_from_string(graph).graph.input[0].type.tensor_type.shape.dim
    assert [dimension.dim_value for dimension in shape][1:] == [96, 96, 3] and shape[0].dim_param


@pytest.mark.parametrize("image_size", [(0, 10, 20), (64, 32, 128), (32, 512, 256)])
def test_a_range_that_is_none_is_refused(image_size: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="min,opt,max"):
        onnx_from_ensemble(ensemble_of("convnext", 1), image_size=image_size)


def _without_layer_norm(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output, node.name))


def _with_pow(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Gelu")
    node.CopyFrom(helper.make_node("Pow", [node.input[0], node.input[0]], node.output, node.name))


def _with_half_softmax(model: onnx.ModelProto) -> None:
    nodes = model.graph.node
    at, softmax = next((k, node) for k, node in enumerate(nodes) if node.op_type == "Softmax")
    result = softmax.output[0]
    casts = [
        helper.make_node("Cast", [softmax.input[0]], ["narrow"], "narrow", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], [result], "wide", to=TensorProto.FLOAT),
    ]
    softmax.input[0], softmax.output[0] = "narrow", "half"
    nodes.insert(at + 1, casts[1])
    nodes.insert(at, casts[0])


def _with_float_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _with_another_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_without_layer_norm, "17 LayerNormalization nodes for 18 layers"),
        (_with_pow, "Pow"),
        (_with_half_softmax, "Softmax .* is not float32"),
        (_with_float_input, "not a uint8 image"),
        (_with_another_opset, "operator sets"),
    ],
)
def test_a_graph_that_would_lose_accuracy_is_refused(
    exported: Callable[[str, int, str], tuple[Ensemble, bytes]],
    damage: Callable[[onnx.ModelProto], None],
    complaint: str,
) -> None:
    model = onnx.load_from_string(exported("convnext", 2, "fp32")[1])
    check_graph(model, layer_norms=18)  # as it was made, it passes
    damage(model)
    with pytest.raises(GateError, match=complaint):
        check_graph(model, layer_norms=18)


def test_notes_of_the_exporter_are_removed() -> None:
    node = helper.make_node("Identity", ["a"], ["b"], doc_string="File /home/somebody/net.py")
    node.metadata_props.add(key="stack_trace", value="/home/somebody/net.py")
    value = helper.make_tensor_value_info("a", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([node], "g", [value], [helper.make_empty_tensor_value_info("b")]))
    assert b"somebody" in model.SerializeToString()
    assert b"somebody" not in plain_graph(model).SerializeToString()


def test_an_export_leaves_the_activations_of_the_ensemble_in_place(
    exported: Callable[[str, int, str], tuple[Ensemble, bytes]],
) -> None:
    ensemble, _ = exported("lite", 1, "fp32")
    assert [layer.inplace for layer in ensemble.modules() if isinstance(layer, nn.ReLU6)] == [True] * 33

"""A bundle small enough to make in milliseconds, with its answers computed by numpy: no training, no torch.

The graph: uint8 (N, H, W, 3) -> mean colour (N, 3) in 0..1 -> per member a matrix product and softmax -> mean.
With the output `entropy`, what stands there is a map of 2 x 2 values: the mean of all pixels, times `MAP`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgemed.bundle import Bundle
from edgemed.evidence import Golden, golden_files, reference_file
from edgemed.manifest import ImageInput
from edgemed.pack import write_bundle

LABELS = ("benign", "malignant", "normal")
MEMBERS = ("imagenet", "mae")
MAP = np.array([[1, 2], [3, 4]], dtype=np.float32) / 128
WEIGHTS = np.random.default_rng(7).normal(size=(2, 3, 3)).astype(np.float32) * 4  # (member, colour, label)


def model(weights: NDArray[np.float32] = WEIGHTS, entropy: bool = False) -> bytes:
    """The serialised ONNX graph, opset 20, with dynamic N, H, W."""
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        node("ReduceMean", ["planes", "axes"], ["mean"], keepdims=0),
        node("Div", ["mean", "scale"], ["colour"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes"),
        numpy_helper.from_array(np.array(255, dtype=np.float32), "scale"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "one"),
    ]
    for k, matrix in enumerate(weights):
        constants.append(numpy_helper.from_array(matrix, f"weight{k}"))
        nodes += [
            node("MatMul", ["colour", f"weight{k}"], [f"logits{k}"]),
            node("Softmax", [f"logits{k}"], [f"softmax{k}"], axis=1),
            node("Unsqueeze", [f"softmax{k}", "one"], [f"member{k}"]),
        ]
    nodes += [
        node("Concat", [f"member{k}" for k in range(len(weights))], ["member_probabilities"], axis=1),
        node("ReduceMean", ["member_probabilities", "one"], ["probabilities"], keepdims=0),
    ]
    members, labels = len(weights), weights.shape[2]
    outputs = [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", labels]),
        helper.make_tensor_value_info("member_probabilities", TensorProto.FLOAT, ["N", members, labels]),
    ]
    if entropy:
        constants.append(numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "after"))
        constants.append(numpy_helper.from_array(MAP, "map"))
        nodes += [
            node("ReduceMean", ["mean", "one"], ["grey"], keepdims=0),
            node("Unsqueeze", ["grey", "after"], ["one_by_one"]),
            node("Mul", ["one_by_one", "map"], ["entropy"]),
        ]
        outputs.append(helper.make_tensor_value_info("entropy", TensorProto.FLOAT, ["N", 2, 2]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        outputs,
        constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def expected(
    images: NDArray[np.uint8], weights: NDArray[np.float32] = WEIGHTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the graph computes for (N, H, W, 3): probabilities (N, K), member probabilities (N, M, K)."""
    colour = images.reshape(len(images), -1, 3).mean(axis=1, dtype=np.float64) / 255
    logits = np.einsum("nc,mck->nmk", colour, weights.astype(np.float64))
    shares = np.exp(logits - logits.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)
    return shares.mean(axis=1), shares


def entropy(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the graph gives as entropy for (N, H, W, 3): (N, 2, 2)."""
    return (images.reshape(len(images), 1, 1, -1).mean(axis=3, dtype=np.float64) * MAP).astype(np.float32)


def image(seed: int, height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    """Noise around a colour of its own, so that images differ in their probabilities."""
    rng = np.random.default_rng(seed)
    base = rng.integers(20, 236, 3)
    return (base + rng.integers(-20, 20, (height, width, 3))).astype(np.uint8)


def evidence_files(golden_weights: NDArray[np.float32] = WEIGHTS) -> dict[str, bytes]:
    """Two golden images of different sizes and a reference table of two rows."""
    images = golden(golden_weights)
    members = np.stack([each.members for each in images])
    table = reference_file(["ab" * 32, "cd" * 32], [0, 1], [0, 1], ["validation", "test"], members)
    return {**golden_files(images), "reference.npz": table, "model_card.md": b"# Tiny\n"}


def golden(weights: NDArray[np.float32] = WEIGHTS) -> list[Golden]:
    """Two images of different sizes with what the graph answers, if it has these weights."""
    images = [image(100), image(101, 64, 48)]
    answers = [expected(one[None], weights) for one in images]
    return [
        Golden(one, mean[0].astype(np.float32), members[0].astype(np.float32))
        for one, (mean, members) in zip(images, answers, strict=True)
    ]


def fields(**changes: Any) -> dict[str, Any]:
    """The arguments of `write_bundle` but `out`, with changes."""
    return {
        "backbone": "tiny",
        "labels": LABELS,
        "member_names": MEMBERS,
        "temperatures": (1.0, 1.25),
        "image_input": ImageInput(min_side=16, opt_side=48, max_side=512),
        "size": 32,
        "flops": 1000,
        "weight_bytes": WEIGHTS.nbytes,
        "files": {"model.fp32.onnx": model(), "model.fp16.onnx": model(), **evidence_files()},
        **changes,
    }


def entropy_fields(error: float = 0) -> dict[str, Any]:
    """`fields` of a bundle with the output `entropy`; `error`: how far off its golden images say that it should be."""
    images = [each._replace(entropy=entropy(each.image[None])[0] + np.float32(error)) for each in golden()]
    graphs = {f"model.{each}.onnx": model(entropy=True) for each in ("fp32", "fp16")}
    files = fields()["files"] | graphs | golden_files(images)
    return fields(entropy=True, size=64, files=files)


def bundle(out: Path, **changes: Any) -> Bundle:
    """A whole bundle at `out`."""
    return write_bundle(out, **fields(**changes))

"""From a bundle to a prediction: `edgemed.load`. No torch.

Why: one call for every runtime and every source of pixels, with the checks that keep a wrong answer from looking like
a right one: bundle verified, image size inside the range that was proven, numbers finite.

    >>> import edgemed
    >>> model = edgemed.load("bundle")
    >>> model.reason
    'openvino: the first that works here (tensorrt: no NVIDIA driver (libcuda.so.1) is installed; ...)'
    >>> model("image.png").decision
    'oval'

On the command line: `edgemed predict BUNDLE IMAGES... [--json]`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from edgemed.bundle import Bundle, opened_by_keys
from edgemed.engines import is_certified, open_engine
from edgemed.errors import GateError, InputError, shown
from edgemed.evidence import Golden
from edgemed.gates import Comparison, in_each_place, judged_golden
from edgemed.images import PixelFormat, image_from_bytes, image_from_file, image_from_pixels
from edgemed.operating import decide
from edgemed.records import PlanRecord, least_batch
from edgemed.runtimes import ENTROPY, Session

Image: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8]"
"""A path, an encoded file's bytes, or pixels (H, W, 3) uint8 ((H, W, 4) RGBA, (H, W) GRAY8: say so with `format`)."""
One = TypeVar("One", bound=Image)  # of a list of one kind: a list[str] is not a list[Image]

Probabilities: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.float32]]"
"""(N, K) of the ensemble and (N, M, K) of its members, each row sums to 1."""

Outputs: TypeAlias = "dict[str, NDArray[np.float32]]"
"""The graph's outputs by name."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image. `label` has the largest probability; the first one of them at a tie."""

    label: str
    probabilities: dict[str, float]  # by label
    members: dict[str, dict[str, float]]  # by member, by label
    runtime: str
    bundle_id: str
    decision: str  # the label, unless the operating point says another, or "refer"
    disagreement: float  # of the members, 0 to 1: see operating.py
    prediction_set: tuple[str, ...] | None = None  # labels that hold the stated coverage; None without one
    path: str | None = None  # None for an image from memory
    entropy: list[list[float]] | None = None  # bits per 32-pixel patch of the resized image, if built --with-entropy

    def as_dict(self) -> dict[str, Any]:
        """The object that `edgemed predict --json` prints for an image; `entropy` is in it where there is one."""
        labels = None if self.prediction_set is None else list(self.prediction_set)
        values = asdict(self) | {"prediction_set": labels}
        if self.entropy is None:
            del values["entropy"]
        first = ("path", "label", "decision", "disagreement", "prediction_set")
        return {key: values[key] for key in (*first, *values)}


@dataclass(frozen=True)
class Model:
    """A bundle on a runtime. Thread-safe: several threads may call one model; on a CPU they take turns."""

    bundle: Bundle
    session: Session
    precision: str
    reason: str  # which runtime, and why not the ones before it
    record: PlanRecord | None = None  # of the plan that runs; None where the ONNX file itself runs

    @property
    def runtime(self) -> str:
        """The name of the runtime in use."""
        return self.session.name

    @property
    def labels(self) -> tuple[str, ...]:
        """The K labels, in the order of the probabilities."""
        return self.bundle.manifest.labels

    @property
    def state(self) -> str:
        """What is proven of this engine: "certified" in this very place, "self-tested" where it was built, or "built".

        Where the bundle was opened with a key, a certificate counts only if it is signed.
        """
        if is_certified(self.bundle, self.session, self.precision, self.record):
            return "certified"
        return "self-tested" if self.record is not None and self.record.state == "self-tested" else "built"

    def golden(self) -> list[Golden]:
        """The bundle's golden images that this engine takes; a plan of one size may take none."""
        return [item for item in self.bundle.golden() if self.record is None or self.record.takes(item.image)]

    def self_test(self) -> Comparison:
        """Run the bundle's golden images and compare with PyTorch's outputs, ensemble and members alike.

        Golden images alone make an engine self-tested, never certified. Raises GateError where an answer differs by
        more than the precision's default gates, InputError for a plan whose sizes are none of theirs.
        """
        golden = self.golden()
        if not golden:
            raise InputError(f"no golden image of {self.bundle.path} has a size that this plan takes")
        least = least_batch(self.record)
        answers = [in_each_place(self.outputs, item.image, least) for item in golden]
        names, what = self.bundle.manifest.member_names, f"{self.bundle.path} on {self.runtime}"
        return judged_golden(golden, answers, self.precision, names, what)

    @overload
    def __call__(self, image: Image, *, format: PixelFormat = "RGB", batch: int = 1) -> Prediction: ...
    @overload
    def __call__(
        self, image: list[Image] | tuple[Image, ...], *, format: PixelFormat = "RGB", batch: int = 1
    ) -> list[Prediction]: ...
    @overload
    def __call__(
        self, image: list[One] | tuple[One, ...], *, format: PixelFormat = "RGB", batch: int = 1
    ) -> list[Prediction]: ...
    def __call__(
        self, image: Image | list[Any] | tuple[Any, ...], *, format: PixelFormat = "RGB", batch: int = 1
    ) -> Prediction | list[Prediction]:
        """Classify an image, or a list of them in its order.

        format: what arrays in memory hold (files say it themselves). batch: in a list, up to so many neighbours of the
        same size run as one request. Batches that are not full run one by one, so that at most two batch sizes are ever
        compiled (seconds each with OpenVINO).

        Raises InputError for an image that cannot be read or is outside the range of sizes, GateError for a result
        that is not finite.
        """
        if batch < 1:
            raise InputError(f"batch is {batch}; give 1 or more")
        if isinstance(image, (list, tuple)):
            return list(self._predictions(image, format, batch))
        return next(self._predictions([image], format, 1))

    def predict_pixels(self, batch: NDArray[np.uint8]) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> probabilities (N, K) and member probabilities (N, M, K), float32.

        The bare call: no copy of a contiguous array. A new N is compiled on first use. Raises InputError for another
        dtype, shape or size, GateError for a result that is not finite.
        """
        outputs = self.outputs(batch)
        return outputs["probabilities"], outputs["member_probabilities"]

    def outputs(self, batch: NDArray[np.uint8]) -> Outputs:
        """`predict_pixels` by the outputs' names, with "entropy" (N, S/32, S/32) of a bundle built --with-entropy."""
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
            raise InputError(f"pixels are {batch.dtype} {batch.shape}; predict_pixels takes uint8 (N, H, W, 3)")
        self._check_size(batch, "the image")
        return self._run(batch)

    def _run(self, batch: NDArray[np.uint8]) -> Outputs:
        manifest = self.bundle.manifest
        if not len(batch):
            labels, members, side = len(manifest.labels), len(manifest.member_names), manifest.entropy_side
            shapes = {"probabilities": (0, labels), "member_probabilities": (0, members, labels)}
            shapes |= {ENTROPY: (0, side, side)} if manifest.entropy else {}
            return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        outputs = self.session.run(batch)
        if (ENTROPY in outputs) != manifest.entropy:
            raise InputError(f"{self.bundle.path}: the engine and the manifest state other outputs; build it again")
        # A NaN would still have an argmax, and so a label.
        if not all(np.isfinite(values).all() for values in outputs.values()):
            raise GateError(
                f"{self.runtime} computed what is not a finite number; do not use this engine: "
                f"run `edgemed inspect {self.bundle.path} --self-test`, and take another --runtime or --precision"
            )
        return outputs

    def _check_size(self, pixels: NDArray[np.uint8], name: str) -> None:
        height, width = pixels.shape[-3:-1]
        limits = self.bundle.manifest.input
        if min(height, width) < limits.min_side or max(height, width) > limits.max_side:
            low, high = min(height, width, limits.min_side), max(height, width, limits.max_side)
            raise InputError(
                f"{shown(name)} has {width} x {height} pixels, this bundle takes sides from {limits.min_side} to "
                f"{limits.max_side}; resize it, or build again with --image-size {low},{limits.opt_side},{high}"
            )

    def _predictions(self, images: Sequence[Image], format: PixelFormat, batch: int) -> Iterator[Prediction]:
        for group in _neighbours(self._decoded(images, format), batch):
            full = len(group) == batch
            requests = (
                [np.stack([pixels for _, pixels in group])] if full and batch > 1 else [p[None] for _, p in group]
            )
            answers = [self._run(request) for request in requests]
            columns = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
            for row, (path, _) in enumerate(group):
                yield self._prediction({name: column[row] for name, column in columns.items()}, path)

    def _decoded(self, images: Sequence[Image], format: PixelFormat) -> Iterator[tuple[str | None, NDArray[np.uint8]]]:
        for number, image in enumerate(images):
            place = "the image" if len(images) == 1 else f"image {number} of the list"
            path = None
            if isinstance(image, np.ndarray):
                pixels = image_from_pixels(image, format)
            elif isinstance(image, (bytes, bytearray, memoryview)):
                pixels = image_from_bytes(bytes(image), place)
            elif isinstance(image, (str, os.PathLike)):
                path = place = os.fspath(image)
                pixels = image_from_file(path)
            else:
                raise InputError(f"{place} is a {type(image).__name__}; give a path, bytes or a numpy array")
            self._check_size(pixels, place)
            yield path, pixels

    def _prediction(self, outputs: Outputs, path: str | None) -> Prediction:
        manifest = self.bundle.manifest
        probabilities, members = outputs["probabilities"], outputs["member_probabilities"]
        decided = decide(manifest.operating_point, manifest.labels, probabilities, members)
        return Prediction(
            label=manifest.labels[int(probabilities.argmax())],
            probabilities=dict(zip(manifest.labels, probabilities.tolist(), strict=True)),
            members={
                name: dict(zip(manifest.labels, shares.tolist(), strict=True))
                for name, shares in zip(manifest.member_names, members, strict=True)
            },
            runtime=self.runtime,
            bundle_id=manifest.bundle_id,
            decision=decided.decision,
            disagreement=decided.disagreement,
            prediction_set=decided.prediction_set,
            path=path,
            entropy=outputs[ENTROPY].tolist() if manifest.entropy else None,
        )


def load(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    runtime: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    public_key: str | os.PathLike[str] | None = None,
    plan_key: str | os.PathLike[str] | None = None,
    uncertified: bool = False,
    plan: str | None = None,
    cuda_graph: bool = True,
    self_test: bool = False,
) -> Model:
    """A model that is ready to predict.

    bundle: the folder that `edgemed build-engine` wrote, or an opened one. runtime: "auto" takes the first of
    tensorrt, tensorrt-rtx, openvino, onnxruntime that works here (`Model.reason` and the log say why); it passes over
    TensorRT plans that are not certified on this very machine, unless `uncertified` is true. A name takes that one or
    raises. precision: which graph, "fp32" or "fp16" (a CPU executes both in fp32). threads: CPU threads of a request;
    None = all physical cores that this process may use. public_key: an Ed25519 key file (PEM) by which the manifest,
    and each plan, must be signed, or a certificate does not count; plan_key: another one for plans. plan: one of the
    bundle's, by its id. cuda_graph: capture a plan of one shape. self_test: run the golden images (`Model.self_test`).

    Raises InputError for a bundle, key, runtime or argument that cannot be used, with the reason and the next step,
    GateError where the self-test fails.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; give 1 or more, or None for all cores")
    if isinstance(bundle, Bundle):
        if public_key is not None or plan_key is not None:
            raise InputError("a key is for a bundle that is not opened yet: pass it to `open_bundle`, or pass a path")
        opened = bundle
    else:
        opened = opened_by_keys(bundle, public_key, plan_key)
    engine = open_engine(
        opened,
        runtime=runtime,
        precision=precision,
        threads=threads,
        uncertified=uncertified,
        plan=plan,
        cuda_graph=cuda_graph,
    )
    model = Model(opened, engine.session, precision, engine.reason, engine.record)
    if self_test:
        model.self_test()
    return model


def _neighbours(
    items: Iterable[tuple[str | None, NDArray[np.uint8]]], batch: int
) -> Iterator[list[tuple[str | None, NDArray[np.uint8]]]]:
    """Runs of items whose images have the same shape, at most `batch` long."""
    group: list[tuple[str | None, NDArray[np.uint8]]] = []
    for item in items:
        if group and (len(group) == batch or group[0][1].shape != item[1].shape):
            yield group
            group = []
        group.append(item)
    if group:
        yield group

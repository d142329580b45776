"""From a bundle to a prediction: `edgemed.load`. No torch.

Why: one call for every runtime and every source of pixels, with the checks that keep a wrong answer from looking like
a right one: bundle verified, image size inside the range that was proven, numbers finite.

    >>> import edgemed
    >>> model = edgemed.load("bundle")
    >>> model.reason
    'openvino: the first that works here (tensorrt: not available in this version of edgemed; ...)'
    >>> model("image.png").label
    'oval'

On the command line: `edgemed predict BUNDLE IMAGES... [--json]`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from edgemed.bundle import Bundle, open_bundle
from edgemed.errors import EdgemedError, InputError
from edgemed.images import PixelFormat, image_from_bytes, image_from_file, image_from_pixels
from edgemed.manifest import MODEL_FILES
from edgemed.runtimes import ORDER, Session, runtime_module

_log = logging.getLogger(__name__)

Image: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[np.uint8]"
"""A path, an encoded file's bytes, or pixels (H, W, 3) uint8 ((H, W, 4) RGBA, (H, W) GRAY8: say so with `format`)."""

Probabilities: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.float32]]"
"""(N, K) of the ensemble and (N, M, K) of its members, each row sums to 1."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image. `label` has the largest probability; the first one of them at a tie."""

    label: str
    probabilities: dict[str, float]  # by label
    members: dict[str, dict[str, float]]  # by member, by label
    runtime: str
    bundle_id: str
    path: str | None = None  # None for an image from memory

    def as_dict(self) -> dict[str, Any]:
        """The object that `edgemed predict --json` prints for an image."""
        return {
            "path": self.path,
            "label": self.label,
            "probabilities": dict(self.probabilities),
            "members": {name: dict(shares) for name, shares in self.members.items()},
            "runtime": self.runtime,
            "bundle_id": self.bundle_id,
        }


@dataclass(frozen=True)
class Model:
    """A bundle on a runtime. Thread-safe: several threads may call one model; on a CPU they take turns."""

    bundle: Bundle
    session: Session
    precision: str
    reason: str  # which runtime, and why not the ones before it

    @property
    def runtime(self) -> str:
        """The name of the runtime in use."""
        return self.session.name

    @property
    def labels(self) -> tuple[str, ...]:
        """The K labels, in the order of the probabilities."""
        return self.bundle.manifest.labels

    @overload
    def __call__(self, image: Image, *, format: PixelFormat = "RGB", batch: int = 1) -> Prediction: ...
    @overload
    def __call__(
        self, image: list[Image] | tuple[Image, ...], *, format: PixelFormat = "RGB", batch: int = 1
    ) -> list[Prediction]: ...
    def __call__(
        self, image: Image | list[Image] | tuple[Image, ...], *, format: PixelFormat = "RGB", batch: int = 1
    ) -> Prediction | list[Prediction]:
        """Classify an image, or a list of them in its order.

        format: what arrays in memory hold (files say it themselves). batch: in a list, up to so many neighbours of the
        same size run as one request. Batches that are not full run one by one, so that at most two batch sizes are ever
        compiled (seconds each with OpenVINO).

        Raises InputError for an image that cannot be read or is outside the range of sizes, EdgemedError for a result
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
        dtype, shape or size, EdgemedError for a result that is not finite.
        """
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
            raise InputError(f"pixels are {batch.dtype} {batch.shape}; predict_pixels takes uint8 (N, H, W, 3)")
        self._check_size(batch, "the image")
        return self._run(batch)

    def _run(self, batch: NDArray[np.uint8]) -> Probabilities:
        manifest = self.bundle.manifest
        if not len(batch):
            shape = (0, len(manifest.member_names), len(manifest.labels))
            return np.zeros(shape[::2], np.float32), np.zeros(shape, np.float32)
        outputs = self.session.run(batch)
        probabilities, members = outputs["probabilities"], outputs["member_probabilities"]
        # A NaN would still have an argmax, and so a label.
        if not (np.isfinite(probabilities).all() and np.isfinite(members).all()):
            raise EdgemedError(
                f"{self.runtime} computed a probability that is not a finite number; do not use this engine: "
                f"run `edgemed bench {self.bundle.path}` to check it, and another --runtime or --precision"
            )
        return probabilities, members

    def _check_size(self, pixels: NDArray[np.uint8], name: str) -> None:
        height, width = pixels.shape[-3:-1]
        limits = self.bundle.manifest.input
        if min(height, width) < limits.min_side or max(height, width) > limits.max_side:
            low, high = min(height, width, limits.min_side), max(height, width, limits.max_side)
            raise InputError(
                f"{name} has {height} x {width} pixels, this bundle takes sides from {limits.min_side} to "
                f"{limits.max_side}; resize it, or build again with --image-size {low},{limits.opt_side},{high}"
            )

    def _predictions(self, images: Sequence[Image], format: PixelFormat, batch: int) -> Iterator[Prediction]:
        for group in _neighbours(self._decoded(images, format), batch):
            full = len(group) == batch
            requests = (
                [np.stack([pixels for _, pixels in group])] if full and batch > 1 else [p[None] for _, p in group]
            )
            answers = [self._run(request) for request in requests]
            rows = zip(*(np.concatenate(column) for column in zip(*answers, strict=True)), strict=True)
            for (path, _), (probabilities, members) in zip(group, rows, strict=True):
                yield self._prediction(probabilities, members, path)

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

    def _prediction(
        self, probabilities: NDArray[np.float32], members: NDArray[np.float32], path: str | None
    ) -> Prediction:
        manifest = self.bundle.manifest
        return Prediction(
            label=manifest.labels[int(probabilities.argmax())],
            probabilities=dict(zip(manifest.labels, probabilities.tolist(), strict=True)),
            members={
                name: dict(zip(manifest.labels, shares.tolist(), strict=True))
                for name, shares in zip(manifest.member_names, members, strict=True)
            },
            runtime=self.runtime,
            bundle_id=manifest.bundle_id,
            path=path,
        )


def load(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    runtime: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
) -> Model:
    """A model that is ready to predict.

    bundle: the folder that `edgemed build-engine` wrote, or an opened one. runtime: "auto" takes the first of
    tensorrt, tensorrt-rtx, openvino, onnxruntime that works here (`Model.reason` and the log say why); a name takes
    that one or raises. precision: which graph, "fp32" or "fp16" (a CPU executes both in fp32). threads: CPU threads of
    a request; None = all physical cores that this process may use.

    Raises InputError for a bundle, runtime or argument that cannot be used, with the reason and the next step.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; give 1 or more, or None for all cores")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    model = opened.read_model(precision)
    key = opened.manifest.files[MODEL_FILES[precision]].sha256

    passed_over: list[str] = []
    for name in ORDER if runtime == "auto" else (runtime,):
        module = runtime_module(name)
        why_not = module if isinstance(module, str) else module.availability()
        if why_not is None and not isinstance(module, str):
            try:
                session = module.open_session(model, precision=precision, threads=threads, cache_key=key)
            except InputError as error:
                if runtime != "auto":
                    raise
                _log.warning("%s cannot run this bundle: %s", name, error)
                why_not = str(error)
            else:
                why = "the first that works here" if runtime == "auto" else "asked for by name"
                reason = f"{name}: {why}" + (f" ({'; '.join(passed_over)})" if passed_over else "")
                _log.info("runtime %s", reason)
                return Model(opened, session, precision, reason)
        passed_over.append(f"{name}: {why_not}")
    raise InputError(f"no runtime for {opened.path}: {'; '.join(passed_over)}")


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

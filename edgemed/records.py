"""The schema of a bundle's plan records: what `plans/<id>.json` says of an engine, and of where it was proven right.

Why: a plan is native code for one runtime version and a few GPUs, and a certificate is about one engine in one place.
A record states both, so that a device can tell before it loads anything. `edgemed inspect BUNDLE` shows them.

A record without a plan file is the certificate of an ONNX file that a runtime executes as it is.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgemed.images import fits
from edgemed.manifest import BundleId, Count, Range, Sha256, Strict, Text, Time

Precision = Literal["fp32", "fp16"]
RuntimeName = Literal["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]
State = Literal["built", "self-tested", "certified"]
Error = Annotated[float, Field(ge=0)]


class Place(Strict):
    """Where an engine ran. capability: a GPU's, like "sm86", or a CPU's features, like "x86_64:avx2,fma"."""

    runtime: RuntimeName
    version: Text
    precision: Precision
    device: Text
    capability: Text
    os: Text
    architecture: Text


class Change(Strict):
    """A change of AUROC, candidate minus reference, with the bounds of its 95 % interval over groups.

    The bounds are None where a class is in few groups, and where no other draw of the groups changes the value.
    """

    value: float
    low: float | None
    high: float | None


class Bounds(Strict):
    """The gates that a certificate's figures kept. A fall of the AUROC that one pair of images makes is none.

    max_auroc_drop: None where no change of the AUROC could be judged: images of one class have none.
    """

    max_flips: Count
    max_prob_error: Error
    max_auroc_drop: Error | None


class Certificate(Strict):
    """An engine was as right as its reference on `images` of the user's images, in one place.

    bundle_id: of the bundle whose reference and operating point judged it; in another one it counts for nothing.
    flips: sha256 of the pixels of each image whose label, or decision or set by the operating point, changed (where the
    reference had a clear answer). unclear: how many others changed, where it had none.
    auroc_change: None where it is undefined (images of one class).
    """

    created: Time
    bundle_id: BundleId
    place: Place
    images: Annotated[int, Field(ge=1)]
    max_prob_error: Error
    mean_prob_error: Error
    flips: tuple[Sha256, ...]
    unclear: Count
    auroc_change: Change | None
    gates: Bounds


class PlanRecord(Strict):
    """`plans/<id>.json`.

    onnx_sha256: the ONNX file that it was built from. version: the runtime's. targets: such as ("sm80", "sm86"), or
    empty for an ONNX file. batch, image_side: the profile, (min, opt, max). sha256, bytes: of `<id>.plan`; None where
    there is no plan file. os, architecture: of the machines that it serves. A plan that could not run where it was
    built is in the state "built"; golden images alone make it "self-tested"; a certificate makes it "certified".
    """

    schema_version: Literal[1] = 1
    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]
    created: Time
    onnx_sha256: Sha256
    precision: Precision
    runtime: RuntimeName
    version: Text
    targets: tuple[Text, ...]
    os: Text
    architecture: Text
    batch: Range
    image_side: Range
    sha256: Sha256 | None
    bytes: Count | None
    state: State
    certificate: Certificate | None = None

    def takes(self, image: NDArray[np.uint8]) -> bool:
        """Whether the sides of an image (H, W, 3) are within the plan's range."""
        return fits(image, self.image_side)

    def certified_at(self, place: Place, bundle_id: str) -> bool:
        """Whether the certificate is of this bundle and place; another GPU, version or CPU needs its own."""
        made = self.certificate if self.state == "certified" else None
        return made is not None and (made.place, made.bundle_id) == (place, bundle_id)


def least_batch(record: PlanRecord | None) -> int:
    """How many images an engine takes at once at the least: more than one for some plans, one without a plan."""
    return 1 if record is None else record.batch[0]


def now() -> str:
    """The time as a record states it: UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

"""The public functions: one signature for all backends, and the choice between them.

`backend="auto"` depends on the input alone, never on what happens to be imported:
    NumPy array   numpy: needs no torch
    CPU tensor    torch
    CUDA tensor   triton; where triton cannot be imported, cuda (compiled kernels through the driver); else torch
By name: reference, numpy, torch, triton, cuda. All return the same entropies and masks; `reference` computes the
entropy in float64 and so differs by up to 1e-5 bit.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

BACKENDS = ("reference", "numpy", "torch", "triton", "cuda")


class Choice(NamedTuple):
    """Which backend a call takes, and why: one line for the log."""

    name: str
    reason: str


def _kind(array: Any) -> str:
    """`array`, `cpu` or `cuda` (or another torch device type); torch is not imported to find out.

    Raises:
        InputError: neither a NumPy array nor a torch tensor.
    """
    if isinstance(array, np.ndarray):
        return "array"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return str(array.device.type)
    raise InputError(f"got {type(array).__name__}, needed is a NumPy array or a torch tensor: use numpy.asarray(x)")


def _automatic(kind: str) -> Choice:
    if kind == "array":
        return Choice("numpy", "a NumPy array: no torch needed")
    if kind != "cuda":
        return Choice("torch", f"a tensor on the device {kind}")
    if importlib.util.find_spec("triton") is not None:
        return Choice("triton", "a CUDA tensor, and triton is installed")
    cuda = importlib.import_module("edgemed.kernels.cuda")
    missing = cuda.unavailable()
    if missing is None:
        return Choice("cuda", "a CUDA tensor, triton is not installed, the compiled kernels are there")
    return Choice("torch", f"a CUDA tensor, but triton is not installed and {missing}")


def backend_for(array: Any, backend: str = "auto") -> Choice:
    """The backend that `patch_entropy(array, ..., backend=backend)` or `entropy_mask` takes, and why.

    Raises:
        InputError: no such backend, or one that cannot take this input; the message names one that can.
    """
    kind = _kind(array)
    if backend == "auto":
        return _automatic(kind)
    if backend not in BACKENDS:
        raise InputError(f"there is no backend {backend!r}.{did_you_mean(backend, ('auto', *BACKENDS))}")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    possible = {
        "reference": kind in ("array", "cpu"),
        "numpy": kind == "array",
        "torch": True,
        "triton": kind == "cuda" or (kind == "cpu" and interpreted),
        "cuda": kind in ("array", "cuda"),
    }
    if not possible[backend]:
        held = "a NumPy array" if kind == "array" else f"a tensor on the device {kind}"
        fix = {
            "triton": "move it with images.to('cuda'), or use backend='auto'",
            "cuda": "move it with images.to('cuda'), or use backend='auto'",
        }.get(backend, "pass images.cpu().numpy(), or use backend='auto'")
        raise InputError(f"the backend {backend} cannot take {held}: {fix}")
    if backend in ("torch", "triton") and importlib.util.find_spec(backend) is None:
        raise InputError(f"the backend {backend} is not installed: pip install {backend}, or use backend='auto'")
    return Choice(backend, "asked for by name")


def _call(function: str, backend: str, first: Any, *arguments: Any) -> Any:
    """Run `function` of the chosen backend; only `torch` on arrays and `reference` on tensors need a conversion."""
    name = backend_for(first, backend).name
    module = importlib.import_module(f"edgemed.kernels.{name}")
    run = getattr(module, function)
    is_array = isinstance(first, np.ndarray)
    if name == "torch" and is_array:
        torch = importlib.import_module("torch")
        tensors = [
            torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"])) if isinstance(x, np.ndarray) else x
            for x in (first, *arguments)
        ]
        return run(*tensors).numpy()
    if name == "reference" and not is_array:
        torch = importlib.import_module("torch")
        arrays = [x.cpu().numpy() if isinstance(x, torch.Tensor) else x for x in (first, *arguments)]
        return torch.from_numpy(run(*arrays))
    return run(first, *arguments)


@overload
def patch_entropy(
    images: NDArray[np.uint8], patch: int, bins: int = 256, order: float = 1.0, backend: str = "auto"
) -> NDArray[np.float32]: ...


@overload
def patch_entropy(images: Tensor, patch: int, bins: int = 256, order: float = 1.0, backend: str = "auto") -> Tensor: ...


def patch_entropy(images: Any, patch: int, bins: int = 256, order: float = 1.0, backend: str = "auto") -> Any:
    """The entropy of the grey values of every patch of every image, in bits (formulas: `reference.py`).

    Args:
        images: uint8 (N, H, W, 3) RGB or (N, H, W) grey, NumPy or torch, any strides; N may be 0.
        patch: side of a patch in pixels: 8, 16 or 32; H and W are multiples of it.
        bins: of the histogram of 0..255: a power of two from 2 to 256.
        order: 1.0 = Shannon; otherwise the Rényi order, 0 < order <= 100, at least 0.01 away from 1.
        backend: `auto` (see the module's docstring) or one of `BACKENDS`.

    Returns:
        float32 (N, H/P, W/P), multiples of 2^-17 bit in 0..log2(min(bins, P * P)), of the same kind and device as
        `images`.

    Raises:
        InputError: input outside these ranges, or a backend that cannot take it; the message names the fix.
        EdgemedError: a backend asked for by name that does not run on this machine.
    """
    return _call("patch_entropy", backend, images, patch, bins, order)


@overload
def entropy_mask(
    entropy: NDArray[np.float32],
    ratio: float,
    sharpness: float,
    seed: int,
    ids: NDArray[np.int64],
    backend: str = "auto",
) -> NDArray[np.bool_]: ...


@overload
def entropy_mask(
    entropy: Tensor, ratio: float, sharpness: float, seed: int, ids: Tensor, backend: str = "auto"
) -> Tensor: ...


def entropy_mask(entropy: Any, ratio: float, sharpness: float, seed: int, ids: Any, backend: str = "auto") -> Any:
    """Masks of exactly round(ratio * h * w) units per image, drawn by Gumbel top-k from standardised entropies.

    Scores are sharpness * (entropy - mean) / std of the image (0 for an image whose entropies are all equal) plus
    Gumbel noise from Philox4x32-10. The same entropies, seed and ids give the same mask on every backend, to the last
    bit: the scores are integers in units of 2^-16 (`reference.mask_scores`), and of equal ones the first unit is
    removed first.

    Args:
        entropy: float32 (N, h, w), bits, clamped to 0..8, NaN to 0; at most 4,096 units per image.
        ratio: share of the units to remove, 0..1; round() takes a half to the even number.
        sharpness: 0 = random masks, 1e7 = always the highest entropies, negative = the lowest; at most 1e7.
        seed: 0..2^64 - 1, the key of the generator.
        ids: int64 (N,), the counter: one value per image and draw, such as draw * images + index.
        backend: `auto` or one of `BACKENDS`.

    Returns:
        bool (N, h, w), True = removed, of the same kind and device as `entropy`.

    Raises:
        InputError: input outside these ranges; EdgemedError: a named backend that does not run on this machine.
    """
    if (_kind(ids) == "array") != (_kind(entropy) == "array"):
        pair = " and ".join(type(each).__name__ for each in (entropy, ids))
        raise InputError(f"entropy and ids are {pair}, needed are two NumPy arrays or two tensors")
    return _call("entropy_mask", backend, entropy, ratio, sharpness, seed, ids)

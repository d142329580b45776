"""Patch entropy and entropy masks by the compiled CUDA C++ kernels: for devices without Triton, callers without torch.

NumPy arrays are copied to device 0 and back, through the CUDA driver alone. CUDA tensors stay where they are, and the
kernels run on torch's current stream. Bodies: patch_entropy.cuh, entropy_mask.cuh; floors of the time they need stand
there.

Check without a GPU: `python -m pytest tests/kernels`, `make kernels`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemed.kernels import definition, driver

if TYPE_CHECKING:
    from torch import Tensor

unavailable = driver.unavailable


def patch_entropy(images: Any, patch: int, bins: int = 256, order: float = 1.0) -> Any:
    """uint8 (N, H, W, 3) RGB or (N, H, W) array or CUDA tensor -> float32 (N, H/P, W/P) of the same kind, bits.

    Raises:
        InputError: input outside the definition (`definition.geometry`).
        EdgemedError: no driver, no device, no compiled kernels.
    """
    if isinstance(images, np.ndarray):
        return _entropy_of_array(images, patch, bins, order)
    return _entropy_of_tensor(images, patch, bins, order)


def entropy_mask(entropy: Any, ratio: float, sharpness: float, seed: int, ids: Any) -> Any:
    """float32 (N, h, w) array or CUDA tensor -> bool (N, h, w) of the same kind, True = removed. Errors as above."""
    if isinstance(entropy, np.ndarray):
        return _mask_of_array(entropy, ratio, sharpness, seed, ids)
    return _mask_of_tensor(entropy, ratio, sharpness, seed, ids)


def _entropy_of_array(images: NDArray[np.uint8], patch: int, bins: int, order: float) -> NDArray[np.float32]:
    shape = definition.geometry(images.shape, images.dtype.name, patch, bins, order)
    entropy = np.empty((shape.count, shape.rows, shape.columns), dtype=np.float32)
    if shape.patches == 0:
        return entropy
    source = np.ascontiguousarray(images)
    terms = definition.terms(shape.pixels, order)
    with (
        driver.on_device(0),
        driver.device_memory(source.nbytes) as images_at,
        driver.device_memory(terms.nbytes) as terms_at,
        driver.device_memory(entropy.nbytes) as entropy_at,
    ):
        driver.copy_in(images_at, source)
        driver.copy_in(terms_at, terms)
        driver.launch_entropy(images_at, terms_at, entropy_at, shape, order, stream=0)
        driver.copy_out(entropy, entropy_at)
    return entropy


def _entropy_of_tensor(images: Tensor, patch: int, bins: int, order: float) -> Tensor:
    torch = importlib.import_module("torch")
    torch_backend = importlib.import_module("edgemed.kernels.torch")
    shape = torch_backend.geometry(images, patch, bins, order)
    entropy: Tensor = torch.empty(shape.count, shape.rows, shape.columns, dtype=torch.float32, device=images.device)
    if shape.patches == 0:
        return entropy
    source = images.contiguous()
    if source.data_ptr() % 8:  # a view that starts inside an allocation: the kernel loads 8 bytes at a time
        source = source.clone()
    terms = torch_backend.terms_tensor(shape.pixels, order, images.device)
    stream = torch.cuda.current_stream(images.device).cuda_stream
    with driver.on_device(entropy.get_device()):
        driver.launch_entropy(source.data_ptr(), terms.data_ptr(), entropy.data_ptr(), shape, order, stream)
    return entropy


def _mask_of_array(
    entropy: NDArray[np.float32], ratio: float, sharpness: float, seed: int, ids: NDArray[np.int64]
) -> NDArray[np.bool_]:
    plan = definition.mask_plan(entropy.shape, entropy.dtype.name, (ids.shape, ids.dtype.name), ratio, sharpness, seed)
    mask = np.empty(entropy.shape, dtype=np.uint8)
    if mask.size == 0:
        return mask.view(np.bool_)
    source, counters = np.ascontiguousarray(entropy, np.float32), np.ascontiguousarray(ids, np.int64)
    with (
        driver.on_device(0),
        driver.device_memory(source.nbytes) as entropy_at,
        driver.device_memory(counters.nbytes) as ids_at,
        driver.device_memory(mask.nbytes) as mask_at,
    ):
        driver.copy_in(entropy_at, source)
        driver.copy_in(ids_at, counters)
        driver.launch_mask(entropy_at, ids_at, mask_at, len(ids), plan, stream=0)
        driver.copy_out(mask, mask_at)
    return mask.view(np.bool_)


def _mask_of_tensor(entropy: Tensor, ratio: float, sharpness: float, seed: int, ids: Tensor) -> Tensor:
    torch = importlib.import_module("torch")
    plan = importlib.import_module("edgemed.kernels.torch").mask_plan(entropy, ratio, sharpness, seed, ids)
    mask: Tensor = torch.empty(entropy.shape, dtype=torch.uint8, device=entropy.device)
    if mask.numel() == 0:
        return mask.view(torch.bool)
    source, counters = entropy.contiguous(), ids.to(entropy.device).contiguous()
    stream = torch.cuda.current_stream(entropy.device).cuda_stream
    with driver.on_device(entropy.get_device()):
        driver.launch_mask(source.data_ptr(), counters.data_ptr(), mask.data_ptr(), len(ids), plan, stream)
    return mask.view(torch.bool)

"""Patch entropy and the masks drawn from it, on every machine, against one oracle (`reference.py`).

The one computation that is this project's own. `patch_entropy` and `entropy_mask` take NumPy arrays or torch tensors
and return the same kind; `backend_for` says which implementation a call takes, and why. Importing this package loads
NumPy only: torch, triton and the CUDA driver are loaded by the first call that needs them. README.md beside this file
has the table of implementations.

>>> from edgemed.kernels import patch_entropy
>>> bits = patch_entropy(images, patch=32)      # uint8 (N, H, W, 3) -> float32 (N, H/32, W/32)

Check: `python -m pytest tests/kernels`.
"""

from __future__ import annotations

from edgemed.kernels.dispatch import BACKENDS, Choice, backend_for, entropy_mask, patch_entropy

__all__ = ["BACKENDS", "Choice", "backend_for", "entropy_mask", "patch_entropy"]

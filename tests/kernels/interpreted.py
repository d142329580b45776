"""Runs calls of the Triton backend on CPU tensors: `TRITON_INTERPRET=1 python interpreted.py CALLS ANSWERS`.

A process of its own, since Triton decides at import whether it interprets.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import torch

from edgemed import kernels

torch.set_num_threads(1)
answers = []
for function, arguments in pickle.loads(Path(sys.argv[1]).read_bytes()):
    tensors = [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in arguments]
    answers.append(getattr(kernels, function)(*tensors, backend="triton").numpy())
module = sys.modules["edgemed.kernels.triton"]
kind = type(module._entropy_kernel).__name__  # proof that the interpreter ran
Path(sys.argv[2]).write_bytes(pickle.dumps((kind, answers)))

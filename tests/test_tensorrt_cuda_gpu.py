"""The CUDA side of TensorRT's execution on a real GPU of any generation: `make test-gpu`. No TensorRT is needed.

The engine is a stand-in that copies within the device, so its answers are known: pinned buffers, uploads, streams,
events and CUDA graphs are real. It runs where TensorRT-RTX has no code for the GPU (Hopper), too.
"""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_bundles as tiny
from numpy.typing import NDArray
from test_damaged import record

from edgemed.runtimes import OUTPUTS
from edgemed.runtimes.tensorrt import FLAVOURS, Flavour
from edgemed.runtimes.tensorrt_limits import CudaError, checked

pytestmark = pytest.mark.gpu
SHAPES = {"probabilities": (-1, 3), "member_probabilities": (-1, 2, 3)}


@pytest.fixture(scope="module")
def cuda() -> Any:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    try:
        if not checked(runtime.cudaGetDeviceCount(), "cudaGetDeviceCount"):
            pytest.skip("no NVIDIA GPU is visible")
    except CudaError as error:
        pytest.skip(str(error))
    return runtime


class Context:
    """Executes: each output takes as many of the image's first bytes as it has, on the stream."""

    def __init__(self, cuda: Any) -> None:
        self.cuda, self.addresses, self.batch = cuda, {}, 0  # type: ignore[var-annotated]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        for name in OUTPUTS:
            size = 4 * self.batch * int(np.prod(SHAPES[name][1:]))
            checked(
                self.cuda.cudaMemcpyAsync(self.addresses[name], self.addresses["image"], size, kind, stream), "copy"
            )
        return True


def answers(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """What `Context` makes of a batch."""
    shapes = {name: (len(images), *shape[1:]) for name, shape in SHAPES.items()}
    flat = images.reshape(-1)
    return {n: flat[: 4 * int(np.prod(shape))].view(np.float32).reshape(shape) for n, shape in shapes.items()}


def session(cuda: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    names = {"image": (-1, -1, -1, 3), **SHAPES}
    engine = SimpleNamespace(
        num_io_tensors=3,
        get_tensor_name=lambda k: list(names)[k],
        get_tensor_shape=names.__getitem__,
        create_execution_context=lambda: Context(cuda),
    )
    module = SimpleNamespace(
        __version__="1.7.1.116",
        ILogger=type("ILogger", (), {}),
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
    )
    monkeypatch.setattr(Flavour, "_tensorrt", lambda self: module)
    graph = changes.pop("cuda_graph", True)
    made = record(tiny.bundle(folder / "bundle"), b"plan", **changes)
    return FLAVOURS["tensorrt-rtx"].open_plan(b"plan", made, cuda_graph=graph)


def same(found: dict[str, NDArray[np.float32]], images: NDArray[np.uint8]) -> bool:
    """To the last bit: the bytes are noise, among them many that are not numbers."""
    return all(
        np.array_equal(found[name].view(np.uint32), want.view(np.uint32)) for name, want in answers(images).items()
    )


@pytest.mark.parametrize("graph", [True, False])
def test_answers_of_a_fixed_plan_come_back_with_and_without_a_cuda_graph(
    cuda: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: bool
) -> None:
    found = session(cuda, tmp_path, monkeypatch, batch=(2, 2, 2), image_side=(48, 48, 48), cuda_graph=graph)
    for seed in range(20):
        images = np.stack([tiny.image(seed, 48, 48), tiny.image(seed + 100, 48, 48)])
        assert same(found.run(images), images)


def test_sizes_may_grow_and_shrink(cuda: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = session(cuda, tmp_path, monkeypatch, batch=(1, 1, 8), image_side=(16, 48, 2048))
    for count, height, width in ((1, 16, 16), (8, 64, 48), (1, 2048, 1536), (3, 20, 30)):
        images = np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)
        assert same(found.run(images), images)


def test_stages_are_timed_on_the_stream(cuda: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = session(cuda, tmp_path, monkeypatch, batch=(1, 1, 8), image_side=(16, 48, 2048))
    images = np.random.default_rng(0).integers(0, 256, (8, 2048, 2048, 3), np.uint8)
    found.run(images)
    outputs, spans = found.run_timed(images)
    assert same(outputs, images)
    assert set(spans) == {"h2d", "compute", "d2h"} and min(spans.values()) > 0
    assert spans["h2d"] > 10 * spans["d2h"]  # 100 MB up, less than a kilobyte down


def test_threads_do_not_mix_their_answers(cuda: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = session(cuda, tmp_path, monkeypatch, batch=(1, 1, 8), image_side=(16, 48, 512))
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for k in range(200):
            images = rng.integers(0, 256, (1 + k % 4, 40 + seed, 64, 3), np.uint8)
            if not same(found.run(images), images):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


def test_memory_comes_back_when_a_session_ends(cuda: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((8, 2048, 2048, 3), np.uint8)
    free = []
    for k in range(3):
        found = session(cuda, tmp_path / str(k), monkeypatch, batch=(1, 1, 8), image_side=(16, 48, 2048))
        found.run(images)
        del found
        free.append(FLAVOURS["tensorrt-rtx"].free_memory())
    assert free[2] >= free[0] - 2**20


def test_the_machine_is_described(cuda: Any) -> None:
    torch = pytest.importorskip("torch")
    here = importlib.import_module("edgemed.runtimes.tensorrt")
    assert here._capability(cuda) == "sm" + "".join(map(str, torch.cuda.get_device_capability()))
    assert here._device_name(cuda) == torch.cuda.get_device_name()

"""The loader's side with NVIDIA DALI: decoding, crop, resize, flips, grey levels and rotation in one pipeline.

On a CPU the rotation is OpenCV's, after the pipeline: DALI 2.4 takes 2.1 ms of CPU time for one image of 224 pixels,
more than for everything else together, and OpenCV 0.3 ms for the same pixels. On a GPU the rotation is DALI's too.

Why it exists: it decodes and augments faster than Pillow in threads, and on a GPU if there is one. It draws nothing at
random: order and augmentation are fed in. Used through `edgemed.loader.open_loader`; tested by
`python -m pytest tests/test_loader.py`. DALI is imported only when a loader is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemed.ahead import ahead
from edgemed.errors import InputError, first_line
from edgemed.images import decodes_alike, image_from_file
from edgemed.loader_torch import CENTRE, Draws, ImagesOf, remembering, rotated


def open_dali(
    files: Sequence[Path], size: int, batch: int, drawn: Collection[str], threads: int, device: torch.device
) -> tuple[str, ImagesOf]:
    """One line about DALI, and its counterpart of `loader_torch.torch_images`, with the images on `device`.

    Args:
        batch: the largest batch.
        drawn: those of `brightness`, `contrast` and `angle` that are applied; crop and flips always are.

    Raises:
        ImportError, OSError, RuntimeError: DALI is not installed, or does not start on this machine or device.
    """
    import nvidia.dali

    on_cpu = device.type != "cuda"
    fed = {"start", "end", *drawn} - ({"angle"} if on_cpu else set())
    build = partial(_pipeline, size, batch, fed, threads, device)
    idle = [build()]  # here, so that a driver that does not fit shows before training begins
    encoded = remembering(partial(_encoded, cache(decodes_alike)))

    def images_of(draws: Draws, batches: Sequence[NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        # A pipeline serves one epoch at a time and many in turn. One that failed or was left half-way is dropped.
        pipe = idle.pop() if idle else build()
        inputs = {name: rows for name, rows in draws._asdict().items() if name in fed}

        def read(batch: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
            return [encoded(files[index]) for index in batch]

        with closing(ahead(read, batches, threads, depth=2)) as reader:
            for step in range(len(batches) + 1):
                if step < len(batches):
                    pipe.feed_input("encoded", next(reader))
                    for name, rows in inputs.items():
                        pipe.feed_input(name, rows[batches[step]])
                images = _output(pipe, [files[index] for index in batches[step - 1]]) if step > 0 else None
                if step < len(batches):
                    pipe.schedule_run()  # made while the caller uses the one before it
                if images is not None:
                    yield _rotated(images, draws.angle[batches[step - 1]]) if on_cpu else images
        idle.append(pipe)

    where = f"decoding on {device} (JPEG by nvJPEG)" if device.type == "cuda" else "CPU decoding"
    return f"DALI {nvidia.dali.__version__}, {where}", images_of


def _pipeline(size: int, batch: int, inputs: Collection[str], threads: int, device: torch.device) -> Any:
    """A built pipeline that is fed by hand, with one batch in its queue."""
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = device.type == "cuda"

    def fed(name: str, ndim: int) -> Any:
        return fn.external_source(name=name, ndim=ndim, dtype=types.UINT8 if name == "encoded" else types.FLOAT)

    @pipeline_def  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        decoder = "mixed" if on_gpu else "cpu"
        # Upsampling as on the CPU, else colours would be blockier on a GPU.
        images = fn.decoders.image(fed("encoded", 1), device=decoder, output_type=types.RGB, jpeg_fancy_upsampling=True)
        images = fn.resize(
            images,
            size=[size, size],
            roi_start=fed("start", 1),
            roi_end=fed("end", 1),  # an end before its start flips
            roi_relative=True,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        if "brightness" in inputs:
            levels = {name: fed(name, 0) for name in ("brightness", "contrast")}
            images = fn.brightness_contrast(images, **levels, contrast_center=CENTRE)
        if "angle" in inputs:
            images = fn.rotate(images, angle=fed("angle", 0), keep_size=True, fill_value=0)
        return images

    built = pipeline(
        batch_size=batch,
        num_threads=threads,
        device_id=_number(device) if on_gpu else None,
        prefetch_queue_depth=1,
    )
    built.build()
    return built


def _number(device: torch.device) -> int:
    """Of a GPU; "cuda" is the one that this process works on, which torchrun gives it."""
    return torch.cuda.current_device() if device.index is None else device.index


def _output(pipe: Any, files: Sequence[Path]) -> torch.Tensor:
    """The images of the batch that was scheduled, which holds `files`; copied, as DALI may reuse its buffers."""
    try:
        (output,) = pipe.share_outputs()
    except RuntimeError as error:
        for file in files:
            image_from_file(file)  # a damaged one is refused here, by name
        names = ", ".join(str(file) for file in files)
        step = "use --loader torch and another --out"
        raise InputError(f"DALI cannot decode one of {names}: {first_line(error)}; {step}") from error
    images: torch.Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor()).clone()
    if images.is_cuda:
        torch.cuda.current_stream(images.device).synchronize()  # the copy is done before DALI may write again
    pipe.release_outputs()
    return images


def _rotated(images: torch.Tensor, angles: NDArray[np.float32]) -> torch.Tensor:
    if not angles.any():
        return images
    turned = [rotated(image, angle) for image, angle in zip(images.numpy(), angles.tolist(), strict=True)]
    return torch.from_numpy(np.stack(turned))


def _encoded(alike: Callable[[Path], bool], file: Path) -> NDArray[np.uint8]:
    """Bytes that DALI decodes by the rules of `images`; `alike`: see `images.decodes_alike`."""
    if alike(file) and file.is_file():
        return np.fromfile(file, np.uint8)
    image = image_from_file(file)
    header = f"P6 {image.shape[1]} {image.shape[0]} 255\n".encode()  # PPM: lossless, and nothing to compress
    return np.frombuffer(header + image.tobytes(), np.uint8)

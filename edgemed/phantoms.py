"""Seeded ultrasound-like phantoms of three classes: data that may be shown to anybody, for demos, tests and bundles.

Why: a data set of patients cannot travel with a program, and a picture of random noise teaches nothing. A phantom has
layers of tissue with speckle, attenuation with depth, shadows of poor skin contact, small cysts and ligaments, and

- `none`: nothing else but a dark band of fat, as dark and about as large as a lesion;
- `oval`: a smooth dark oval, wider than tall, with echoes enhanced behind it for the most part;
- `irregular`: a dark, spiculated, often taller than wide mass that for the most part casts a shadow.

Shape and what lies behind tell the classes apart. Brightness does not: mean and contrast of every image are drawn at
random, whatever its class. These are drawings, not a simulation of wave physics.

    python -c "from edgemed.phantoms import write_dataset; print(write_dataset('phantoms'))"
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgemed.errors import InputError, cannot_write, did_you_mean

CLASSES = ("irregular", "none", "oval")
MIN_SIDE = 32  # pixels
LOOKS = 4  # angles a scanner averages over ("compounding"), which calms the speckle

_Map = NDArray[np.float64]  # (height, width)


def write_dataset(out: str | Path, per_class: int = 60, size: int = 160, seed: int = 0) -> Path:
    """Writes `out/CLASS/CLASS_0000.png`, ..., `per_class` of each, and returns `out`. Same arguments, same bytes.

    Sides vary from 0.8 to 1.25 times `size` pixels. The folder appears whole or not at all. `InputError` when `out`
    holds anything, or for a size below `MIN_SIDE`.
    """
    target = Path(out).resolve()
    if target == Path.cwd():
        raise InputError(f"{target}: is the folder that you are in; name one inside of it.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target}: is not an empty folder; delete it, or name another one.")
    if per_class < 1 or seed < 0:
        raise InputError(f"phantoms: {per_class} per class from seed {seed}; take at least 1 and a seed of at least 0.")
    sides = np.random.default_rng([seed, len(CLASSES)]).uniform(0.8, 1.25, (len(CLASSES), per_class, 2)) * size
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        for k, kind in enumerate(CLASSES):
            (beside / kind).mkdir(parents=True)
            for i in range(per_class):
                height, width = (round(side) for side in sides[k, i])
                image = Image.fromarray(phantom(kind, seed * 1_000_000 + i, height, width)[:, :, 0])
                image.save(beside / kind / f"{kind}_{i:04d}.png", compress_level=6)
        if target.exists():
            target.rmdir()
        beside.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Path(out)


def phantom(kind: str, seed: int, height: int = 160, width: int = 160) -> NDArray[np.uint8]:
    """One phantom as (height, width, 3) uint8 with three equal channels. Same arguments, same pixels."""
    if kind not in CLASSES:
        raise InputError(f"phantom class {kind!r} is not known.{did_you_mean(kind, CLASSES)}")
    if min(height, width) < MIN_SIDE:
        raise InputError(f"phantom of {height} x {width} pixels: both sides need at least {MIN_SIDE}.")
    rng = np.random.default_rng([seed, CLASSES.index(kind)])
    # Image coordinates: y is depth, 0 at the skin to 1; x is lateral, scaled so that a unit is as long as in y.
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / height, indexing="ij")
    echo = _tissue(rng, y, x)
    echo *= _lesion(rng, kind, y, x)
    for _ in range(rng.integers(0, 3)):
        echo *= _cyst(rng, y, x)
    for _ in range(rng.integers(1, 5)):
        echo *= _ligament(rng, y, x)
    for _ in range(rng.integers(0, 3)):
        echo *= _contact_shadow(rng, y, x)
    echo *= np.exp(-rng.uniform(-0.3, 1.6) * y)  # what attenuation leaves after the gain over depth made up for it
    image = np.log(echo * _speckle(rng, height, width) + 0.02)  # scanners show the logarithm
    image = (image - image.mean()) / image.std()
    image = rng.uniform(80, 125) + rng.uniform(34, 50) * image
    grey = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _tissue(rng: np.random.Generator, y: _Map, x: _Map) -> _Map:
    """Echo strength of skin, fat, gland and muscle, with wavy borders and a slow drift."""
    echo = np.full(y.shape, rng.uniform(0.5, 1.2))  # skin
    for top, low, high in ((0.05, 0.25, 0.9), (0.22, 0.5, 1.4), (rng.uniform(0.72, 0.9), 0.3, 1.0)):
        border = top + _wave(rng, x, 0.03)
        echo = _mix(echo, rng.uniform(low, high), y - border, 0.012)
    return np.asarray(echo * np.exp(0.25 * _smooth_noise(rng, y.shape, 0.08)))


def _lesion(rng: np.random.Generator, kind: str, y: _Map, x: _Map) -> _Map:
    """Factor on the echo: the mass and what lies behind it."""
    centre_y, centre_x = rng.uniform(0.36, 0.56), rng.uniform(0.3, 0.7) * float(x.max())
    radius, dark = rng.uniform(0.12, 0.21), rng.uniform(0.15, 0.5)
    if kind == "none":  # a band of fat across the picture, of a lesion's area
        depth = y - centre_y - _wave(rng, x, 0.03)
        thick = np.pi * radius**2 / float(x.max()) / 2
        return _mix(np.ones_like(y), dark, thick * np.exp(_wave(rng, x, 0.4)) - np.abs(depth), 0.02)
    tilt = rng.uniform(-0.35, 0.35)
    along = (x - centre_x) * np.cos(tilt) + (y - centre_y) * np.sin(tilt)
    across = (y - centre_y) * np.cos(tilt) - (x - centre_x) * np.sin(tilt)
    aspect = rng.uniform(0.55, 0.8) if kind == "oval" else rng.uniform(0.75, 1.35)  # tall by wide
    along, across = along * np.sqrt(aspect), across / np.sqrt(aspect)
    angle, distance = np.arctan2(across, along), np.hypot(along, across)
    rim = radius * (1 + rng.uniform(0, 0.06) * np.cos(2 * angle + rng.uniform(0, 6.3)))
    if kind == "irregular":
        rim = radius * rng.uniform(0.7, 0.82) * np.exp(0.12 * _circular_noise(rng, angle, 7))
        for direction in rng.uniform(0, 2 * np.pi, rng.integers(7, 13)):  # spicules
            off = np.angle(np.exp(1j * (angle - direction)))
            rim = rim + radius * rng.uniform(0.15, 0.65) * np.exp(-((off / rng.uniform(0.07, 0.18)) ** 2))
    soft = rng.uniform(0.01, 0.02)
    factor = _mix(np.ones_like(y), dark, rim - distance, soft)
    behind = rng.uniform(1.0, 1.9) if kind == "oval" else rng.uniform(0.3, 0.95)
    half = radius / np.sqrt(aspect) * rng.uniform(0.7, 0.95)
    column = _step(half - np.abs(x - centre_x), 0.03) * _step(y - centre_y - radius * np.sqrt(aspect), 0.03)
    return np.asarray(factor * behind**column)


def _cyst(rng: np.random.Generator, y: _Map, x: _Map) -> _Map:
    """Factor of a small round cyst, with enhanced echoes behind."""
    centre_y, centre_x = rng.uniform(0.2, 0.9), rng.uniform(0.05, 0.95) * float(x.max())
    radius = rng.uniform(0.015, 0.04)
    column = _step(radius - np.abs(x - centre_x), 0.01) * _step(y - centre_y, 0.02)
    inside = radius - np.hypot(y - centre_y, x - centre_x)
    return _mix(rng.uniform(1.0, 1.5) ** column, rng.uniform(0.1, 0.4), inside, 0.008)


def _ligament(rng: np.random.Generator, y: _Map, x: _Map) -> _Map:
    """Factor of a bright, thin, wavy line, mostly horizontal."""
    line = rng.uniform(0.15, 0.95) + rng.uniform(-0.4, 0.4) * (x - x.mean()) + _wave(rng, x, 0.03)
    ends = _step(rng.uniform(0.1, 0.35) - np.abs(x - rng.uniform(0, float(x.max()))), 0.05)
    return np.asarray(1 + rng.uniform(0.5, 2.0) * ends * np.exp(-(((y - line) / rng.uniform(0.005, 0.012)) ** 2)))


def _contact_shadow(rng: np.random.Generator, y: _Map, x: _Map) -> _Map:
    """Factor of a shadow that falls from the skin, or of a stripe that is too bright."""
    lean = rng.uniform(-0.15, 0.15)
    column = _step(rng.uniform(0.04, 0.14) - np.abs(x - rng.uniform(0, float(x.max())) - lean * y), 0.04)
    return np.asarray(np.exp(rng.uniform(-1.2, 0.5) * column * _step(y - rng.uniform(0, 0.5), 0.1)))


def _speckle(rng: np.random.Generator, height: int, width: int) -> _Map:
    """Amplitude of mean 1: the mean of `LOOKS` Rayleigh-distributed sums of echoes, correlated wider than deep."""
    grain = rng.uniform(0.7, 1.1) * height / 160  # pixels
    waves = rng.standard_normal((LOOKS, 2, height, width))
    amplitude: Any = sum(np.hypot(*(_blurred(part, grain, 1.8 * grain) for part in look)) for look in waves)
    return np.asarray(amplitude / amplitude.mean())


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> _Map:
    """Noise of mean 0 and deviation 1 that varies over `scale` of the height."""
    noise = _blurred(rng.standard_normal(shape), scale * shape[0], scale * shape[0])
    return np.asarray((noise - noise.mean()) / noise.std())


def _blurred(values: _Map, sigma_y: float, sigma_x: float) -> _Map:
    """Gaussian blur, sigmas in pixels, wrapping around at the edges."""
    fy, fx = np.fft.fftfreq(values.shape[0])[:, None], np.fft.rfftfreq(values.shape[1])[None, :]
    response = np.exp(-2 * np.pi**2 * ((sigma_y * fy) ** 2 + (sigma_x * fx) ** 2))
    return np.asarray(np.fft.irfft2(np.fft.rfft2(values) * response, values.shape))


def _wave(rng: np.random.Generator, x: _Map, height: float) -> _Map:
    """A wavy line over x: three cosines, standard deviation about `height`."""
    periods, phases = rng.uniform(0.25, 1.5, 3), rng.uniform(0, 2 * np.pi, 3)
    waves = [np.cos(2 * np.pi * x / period + phase) for period, phase in zip(periods, phases, strict=True)]
    return np.asarray(height * np.sqrt(2 / 3) * sum(waves))


def _circular_noise(rng: np.random.Generator, angle: _Map, orders: int) -> _Map:
    """Noise over an angle, of deviation about 1: harmonics 2 to `orders`."""
    harmonics = range(2, orders + 1)
    waves: Any = sum(rng.standard_normal() * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in harmonics)
    return np.asarray(waves * np.sqrt(2 / len(harmonics)))


def _mix(outside: _Map, inside: float, signed: _Map, soft: float) -> _Map:
    """`inside` where `signed` > 0, else `outside`, with a border `soft` wide."""
    weight = _step(signed, soft)
    return np.asarray(outside * (1 - weight) + inside * weight)


def _step(signed: _Map, soft: float) -> _Map:
    """0 to 1 as `signed` grows through 0, over a width of about `soft`."""
    return np.asarray(0.5 + 0.5 * np.tanh(signed / soft))

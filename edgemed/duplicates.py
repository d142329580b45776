"""Which images of a data set show the same picture: rescaled, cropped a little, re-encoded, or with marks drawn on.

Why: a copy on the other side of a split is a question whose answer was in the training set. Public sets have many, some
with another label: in BUSI, two images in five have one. `dataset.join_near_duplicates` puts copies into one group:

    python -c "from edgemed.dataset import *; print(join_near_duplicates(scan('DATA'))[1])"

A 64-bit perceptual hash is too coarse to decide: one that finds 95 % of crops joins 40 % of dermoscopy images to
another lesion. Here it only proposes, and each step passes on few pairs to the next, dearer one:

1. proposal: perceptual hashes (`imagehash.phash`) of both, or of one without its rim and of the other, are near;
2. screening: details correlate in one of 25 crops of up to 5 % per side of either image, at 24 x 24 pixels, and the
   pair is among the `BEST` of one of its images;
3. alignment: from that crop, an affine fit by the enhanced correlation coefficient (Evangelidis and Psarakis 2008)
   on clipped details, without the 15 % of the pixels that differ most, so that text and calipers do not pull it;
4. confirmation: the median over the picture of the local correlation of fine details is at least `CONFIRM`.

Details are what a Gaussian blur takes away, and they are compared in small windows: a dark rim or a round lesion in the
middle, which unrelated images share, weighs no more than its area. The median ignores what was drawn on less than half
of the picture. Copies that are mirrored, turned, or cropped by more than about 5 % per side are not looked for; two
crops of one picture are surely joined only where the whole is there too. Of images with a side below `SMALLEST` pixels
only equal ones are found: enlarged, hundreds of 1,000 chest X-rays of 28 pixels would pass for another patient's.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgemed.errors import InputError
from edgemed.images import image_from_file
from edgemed.progress import Count

SIDE = 96  # pixels of a thumbnail
SMALLEST = 48  # pixels: of 1,000 chest X-rays at this size, two pairs of two patients pass all steps; at 40, nine
HASH_BITS = 16  # proposes 99 % of copies, and one pair in 160 of 10,015 dermoscopy images
MIDDLE_BITS = 10  # of one without its rim: of crops by 5 % on all sides, the other hash misses up to 23 %
SCREEN = 0.55  # correlation at 24 x 24 of the best crop: keeps 99 % of copies, one proposal in 100
BEST = 8  # candidates per image: bounds the time on sets where all images look alike, such as chest X-rays
PROMISING = 0.58  # local correlation before the alignment
CONFIRM = 0.5
FLAT = 0.25  # variance in squared grey levels

_SMALL = 24
_CUTS = ((0.0, 0.0), (0.05, 0.0), (0.0, 0.05), (0.025, 0.025), (0.05, 0.05))  # parts cut off at the start and the end
_RIM = round(_CUTS[-1][0] * SIDE)
_CROPS = tuple((rows, columns) for rows in _CUTS for columns in _CUTS)
_BLOCK = 512  # images at a time, which bounds memory

Thumbnail = NDArray[np.uint8]  # (SIDE, SIDE) grey, or (H, W) of an image that is smaller than `SMALLEST`
Floats = NDArray[np.float32]


def thumbnail(image: NDArray[np.uint8]) -> Thumbnail:
    """(SIDE, SIDE) uint8 grey of an RGB image (H, W, 3), the aspect squashed; a small one as it is, see `SMALLEST`."""
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    if min(grey.shape) < SMALLEST:
        return grey
    return np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def thumbnails_of_files(files: Sequence[Path], progress: Count | None = None) -> list[Thumbnail]:
    """The thumbnail of every image, decoded in full. `InputError` counts the bad ones and names the first."""
    made, bad = readable_thumbnails(files, progress)
    if bad:
        raise InputError(f"{len(bad)} of {len(files)} images cannot be used; the first: {bad[0]}")
    return made


def readable_thumbnails(
    files: Sequence[Path], progress: Count | None = None
) -> tuple[list[Thumbnail], list[InputError]]:
    """The thumbnail of every image that can be decoded in full, and what is wrong with the others."""

    def one(file: Path) -> Thumbnail | InputError:
        try:
            return thumbnail(image_from_file(file))
        except InputError as error:
            return error

    made, bad = list[Thumbnail](), list[InputError]()
    with ThreadPoolExecutor(max_workers=2) as pool:
        for done, result in enumerate(pool.map(one, files), start=1):
            if isinstance(result, InputError):
                bad.append(result)
            else:
                made.append(result)
            if progress is not None:
                progress(done, len(files))
    return made, bad


def duplicate_pairs(
    thumbnails: Sequence[Thumbnail], *, progress: Count | None = None, first_side: int = 0
) -> list[tuple[int, int, float]]:
    """Sorted (i, j, correlation) with i < j for images that show the same picture; 1.0 for equal thumbnails.

    Of k equal thumbnails the first is compared with the others of the data set, and paired with its k - 1 copies.
    `progress(done, all)` counts the pairs that reach the alignment. first_side: of unequal thumbnails, only one of so
    many first ones is compared, with one of the rest; 0: each with each.
    """
    first: dict[tuple[tuple[int, ...], bytes], int] = {}
    pairs = []
    for k, image in enumerate(thumbnails):
        i = first.setdefault((image.shape, image.tobytes()), k)
        if i != k:
            pairs.append((i, k, 1.0))
    unique = [k for k in first.values() if thumbnails[k].shape == (SIDE, SIDE)]
    rows = sum(k < first_side for k in unique) or len(unique)
    if len(unique) < 2:
        return sorted(pairs)
    images = np.stack([thumbnails[k] for k in unique])
    proposed = _proposed(images, rows)
    if first_side:  # where copies are on both sides, so is the picture
        here, (i, j) = np.arange(len(unique)) < rows, proposed.T
        there = ~here | np.isin(unique, [i for i, j, _ in pairs if j >= first_side])
        proposed = proposed[(here[i] & there[j]) | (there[i] & here[j])]
    candidates, crops = _screened(images, proposed)
    with ThreadPoolExecutor(max_workers=2) as pool:
        scores = pool.map(partial(_confirmation, images), candidates[:, 0], candidates[:, 1], crops)
        for done, ((i, j), score) in enumerate(zip(candidates, scores, strict=True), start=1):
            if score >= CONFIRM:
                a, b = sorted((unique[i], unique[j]))
                pairs.append((a, b, score))
            if progress is not None:
                progress(done, len(candidates))
    return sorted(pairs)


def shown_in(images: Sequence[Thumbnail], others: Sequence[Thumbnail], progress: Count | None = None) -> list[bool]:
    """Whether each of `images` shows the same picture as one of `others`."""
    both = [*images, *others]
    pairs = duplicate_pairs(both, progress=progress, first_side=len(images))
    picture = merged_groups([str(k) for k in range(len(both))], [(i, j) for i, j, _ in pairs])
    known = set(picture[len(images) :])
    return [each in known for each in picture[: len(images)]]


def merged_groups(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """The group of every image once both groups of every pair (i, j) are one, under the name that sorts first."""
    parent = {group: group for group in groups}

    def top(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for i, j in pairs:
        first, second = sorted((top(groups[i]), top(groups[j])))
        parent[second] = first
    return [top(group) for group in groups]


def _proposed(images: NDArray[np.uint8], rows: int) -> NDArray[np.int32]:
    """(M, 2) pairs i < j, i < rows, of (N, SIDE, SIDE) thumbnails whose perceptual hashes are near."""
    whole, middle = _hashes(images), _hashes(images[:, _RIM:-_RIM, _RIM:-_RIM])
    found = []
    for start in range(0, rows, _BLOCK):
        block = slice(start, min(start + _BLOCK, rows))
        near = whole[block] @ whole[start:].T >= 64 - 2 * HASH_BITS
        near |= middle[block] @ whole[start:].T >= 64 - 2 * MIDDLE_BITS
        near |= whole[block] @ middle[start:].T >= 64 - 2 * MIDDLE_BITS
        i, j = np.nonzero(np.triu(near, k=1))
        found.append(np.stack((i + start, j + start), axis=1).astype(np.int32))
    return np.concatenate(found)


def _hashes(images: NDArray[np.uint8]) -> Floats:
    """(N, 64) of 1 and -1, so that a product counts equal bits minus unequal ones."""
    bits = np.stack([imagehash.phash(Image.fromarray(image)).hash.ravel() for image in images])
    return np.where(bits, np.float32(1), np.float32(-1))


def _screened(images: NDArray[np.uint8], pairs: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The pairs (M, 2) that agree in some crop, as (cropped image, whole image), and the index of that crop."""
    blocks = range(0, len(images), _BLOCK)
    whole = np.concatenate([_small(images[start : start + _BLOCK], _CUTS[:1])[:, 0] for start in blocks])
    best, crop = np.full(len(pairs), -1, np.float32), np.zeros(len(pairs), np.int64)
    swapped = np.zeros(len(pairs), bool)
    for side in (0, 1):  # the image of the pair that is tried as the one that was cropped less
        order = np.argsort(pairs[:, side], kind="stable")
        bounds = np.searchsorted(pairs[order, side], np.arange(len(images) + 1))
        for start in blocks:
            for k, parts in enumerate(_small(images[start : start + _BLOCK], _CUTS), start=start):
                mine = order[bounds[k] : bounds[k + 1]]
                scores = whole[pairs[mine, 1 - side]] @ parts.T
                top = scores.max(axis=1)
                better = top > best[mine]
                mine = mine[better]
                best[mine], crop[mine], swapped[mine] = top[better], scores[better].argmax(axis=1), side == 0
    keep = (best >= SCREEN) & _among_best(pairs, best, len(images))
    ordered = np.where(swapped[:, None], pairs[:, ::-1], pairs)
    return ordered[keep], crop[keep]


def _among_best(pairs: NDArray[np.int32], scores: Floats, count: int) -> NDArray[np.bool_]:
    """Whether a pair is among the `BEST` of its first image, or of its second, that have it in this place."""
    keep = np.zeros(len(pairs), bool)
    for side in (0, 1):
        order = np.lexsort((-scores, pairs[:, side]))
        bounds = np.searchsorted(pairs[order, side], np.arange(count))
        keep[order] |= np.arange(len(pairs)) - bounds[pairs[order, side]] < BEST
    return keep


def _small(images: NDArray[np.uint8], cuts: Sequence[tuple[float, float]]) -> Floats:
    """(N, len(cuts)^2, 24 * 24) details of all crops, each with mean 0 and length 1."""
    maps = np.stack([_details(image) for image in images])[:, None, None]
    area = np.stack([_area_weights(*cut) for cut in cuts])  # (K, 24, SIDE)
    crops = area[:, None] @ maps @ area.transpose(0, 2, 1)[None]  # (N, K, K, 24, 24)
    crops = crops.reshape(len(images), len(cuts) ** 2, -1)
    crops -= crops.mean(axis=2, keepdims=True)
    return np.asarray(crops / (np.linalg.norm(crops, axis=2, keepdims=True) + 1e-6), np.float32)


def _area_weights(start: float, end: float) -> Floats:
    """(24, SIDE) weights of an area average over the part of a side that is left after both cuts."""
    edges = np.linspace(start * SIDE, (1 - end) * SIDE, _SMALL + 1)
    pixel = np.arange(SIDE)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = np.clip(overlap, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _details(image: Thumbnail) -> Floats:
    """(SIDE, SIDE) local contrast: a band of details over its root mean square nearby, about -2..2, 0 where flat."""
    grey = _blurred(image.astype(np.float32), 1)
    band = grey - _blurred(grey, 4)
    return np.asarray(band / np.sqrt(_blurred(band * band, 8) + 1), np.float32)  # 1: a grey level, to leave noise low


def _confirmation(images: NDArray[np.uint8], cropped: int, whole: int, crop: int) -> float:
    """The local correlation of two thumbnails once aligned, -1..1."""
    a, b = images[cropped], images[whole]
    matrix = _matrix(*_CROPS[crop])
    if _local_correlation(a, b, matrix, smooth=1) < PROMISING:
        return -1.0
    return _local_correlation(a, b, _aligned(a, b, matrix), smooth=0)


def _matrix(rows: tuple[float, float], columns: tuple[float, float]) -> Floats:
    """(2, 3) map from pixel (x, y, 1) of the crop's thumbnail to that of the whole."""
    scale_x, scale_y = 1 - sum(columns), 1 - sum(rows)
    x, y = ((scale - 1) / 2 + SIDE * cut[0] for scale, cut in ((scale_x, columns), (scale_y, rows)))
    return np.array([[scale_x, 0, x], [0, scale_y, y]], np.float32)


def _aligned(a: Thumbnail, b: Thumbnail, start: Floats) -> Floats:
    """(2, 3) affine map that lays b on a, or the start where no fit is found nearby."""
    details_a, details_b = _clipped(a), _clipped(b)
    off = cv2.blur(np.abs(details_a - _warped(details_b, start)), (5, 5))
    mask = (off < np.quantile(off, 0.85)).astype(np.uint8)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 15, 1e-3)
    try:
        _, fit = cv2.findTransformECC(details_a, details_b, start.copy(), cv2.MOTION_AFFINE, stop, mask, 3)
    except cv2.error:  # it did not converge
        return start
    near = np.abs(fit - start).max(axis=0) <= (0.08, 0.08, 0.08 * SIDE)
    return np.asarray(fit, np.float32) if near.all() else start


def _clipped(image: Thumbnail) -> Floats:
    """(SIDE, SIDE) details in units of their own robust deviation, clipped to -2..2."""
    grey = image.astype(np.float32)
    band = grey - _blurred(grey, 5)
    return np.asarray(np.clip(band / (1.4826 * np.median(np.abs(band)) + 0.3), -2, 2), np.float32)


def _local_correlation(a: Thumbnail, b: Thumbnail, matrix: Floats, smooth: float) -> float:
    """The median correlation of details over windows of 12 x 12 pixels, with b warped onto a; -1 where nothing is seen.

    smooth: sigma of a blur in pixels, 0 for the finest details. Windows that are flat in both images say nothing.
    """
    fine, coarse = smooth, 4 * smooth or 2
    greys = (image.astype(np.float32) for image in (a, _warped(b, matrix)))
    x, y = ((_blurred(grey, fine) if fine else grey) - _blurred(grey, coarse) for grey in greys)
    xy, xx, yy = (cv2.blur(product, (12, 12)) for product in (x * y, x * x, y * y))
    inside = cv2.warpAffine(
        np.ones((SIDE, SIDE), np.uint8), matrix, (SIDE, SIDE), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    )
    inside = cv2.erode(inside, np.ones((9, 9), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    seen = (inside > 0) & (np.maximum(xx, yy) > FLAT)
    return float(np.median((xy / np.sqrt(xx * yy + 0.01))[seen])) if seen.mean() > 0.02 else -1.0


def _warped(image: NDArray[np.uint8] | Floats, matrix: Floats) -> Floats:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE))


def _blurred(values: Floats, sigma: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma))

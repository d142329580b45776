"""How many altered copies of real images the duplicate join finds, and how many other images it takes for one.

    python benchmarks/near_duplicates.py DATA [DATA ...]     # each a folder per class, or a CSV; some minutes a set

For each alteration, copies of 150 images of the set are put among all its images, and `duplicate_pairs` runs as in
training. A pair that touches a copy is right where it joins it to its original, or to an image that is joined to that
without any copies. Recall: copies with a right pair. Precision: right pairs among those that touch a copy. Where a CSV
gives groups (data_sets.py writes build/data-sets/ham10000.csv, by lesion), the pairs across them are counted, and the
images in these. Exits with 1 where a bar is missed: an alteration of those of the bar (rescaled, cropped, re-encoded,
marked, all at once) has a recall below 0.95, or 0.1 % of the images or more are joined to one of another given group.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import keep
from PIL import Image, ImageDraw, ImageEnhance

from edgemed.dataset import scan
from edgemed.duplicates import Thumbnail, duplicate_pairs, merged_groups, thumbnail
from edgemed.images import image_from_file

COPIES = 150
BAR = 0.95
ACROSS = 0.001
"""Of a set's images, fewer are to be joined to one of another given group, whether or not the two show one picture."""

Alteration = Callable[[Image.Image, np.random.Generator], Image.Image]


def rescaled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    scale = rng.uniform(0.5, 2)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(30, 96)))
    return Image.open(buffer)


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Up to 5 % of the height and of the width are lost, from any sides."""
    parts = [rng.uniform(0, 0.05) * np.array([share, 1 - share]) for share in rng.uniform(0, 1, 2)]
    (left, right), (top, bottom) = parts
    return image.crop((round(left * image.width), round(top * image.height),
                       round((1 - right) * image.width), round((1 - bottom) * image.height)))  # fmt: skip


def framed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """5 % are lost at each of the four sides: the most that README promises to find."""
    across, down = round(0.05 * image.width), round(0.05 * image.height)
    return image.crop((across, down, image.width - across, image.height - down))


def marked(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Two calipers, the line between them, and a caption."""
    image = image.convert("RGB")
    draw = ImageDraw.Draw(image)
    ends = rng.uniform(0.2, 0.8, (2, 2)) * image.size
    for x, y in ends:
        draw.line((x - 4, y, x + 4, y), fill="yellow")
        draw.line((x, y - 4, x, y + 4), fill="yellow")
    draw.line([tuple(end) for end in ends], fill="yellow")
    draw.text((5, image.height - 14), "R 10-11H", fill="white")
    return image


def brightened(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(rng.uniform(1.1, 1.3))


def darkened(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 0.9))


def altogether(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return encoded(marked(rescaled(cropped(image, rng), rng), rng), rng)


ALTERATIONS: dict[str, Alteration] = {
    "rescaled by 0.5 to 2": rescaled,
    "re-encoded, JPEG quality 30 to 95": encoded,
    "cropped by up to 5 %": cropped,
    "cropped by 5 % on every side": framed,
    "calipers and text": marked,
    "cropped, rescaled, marked, re-encoded": altogether,
    "brighter by 10 to 30 %": brightened,
    "darker by 10 to 30 %": darkened,
}
OF_THE_BAR = list(ALTERATIONS)[:6]


def measured(
    originals: list[Thumbnail], groups: list[str], chosen: list[int], copies: list[Thumbnail]
) -> dict[str, Any]:
    """Recall and precision of one alteration; `groups`: of the originals, by the join without copies."""
    origin = [*range(len(originals)), *chosen]
    pairs = [(i, j) for i, j, _ in duplicate_pairs([*originals, *copies]) if j >= len(originals)]
    wrong = [(i, j) for i, j in pairs if groups[origin[i]] != groups[origin[j]]]
    found = {j for pair in pairs if pair not in wrong for j in pair if j >= len(originals)}
    return {
        "copies": len(copies),
        "recall": round(len(found) / len(copies), 4),
        "pairs": len(pairs),
        "wrong_pairs": len(wrong),
        "precision": round(1 - len(wrong) / max(len(pairs), 1), 4),
    }


def across_groups(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """How many pairs join two of the given groups, how many images are in these pairs, and their share of all."""
    across = [(i, j) for i, j in pairs if groups[i] != groups[j]]
    images = len({k for pair in across for k in pair})
    return {
        "pairs_across_given_groups": len(across),
        "images_across_given_groups": images,
        "share_across_given_groups": round(images / len(groups), 6),
    }


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    bar = {"recall": BAR, "of": OF_THE_BAR, "share_across_given_groups_below": ACROSS}
    document: dict[str, Any] = {"bar": bar, "sets": {}}
    missed = []
    for data in map(Path, sys.argv[1:]):
        dataset = scan(data)
        originals = [dataset.thumbnails[row.path] for row in dataset.rows]
        own = [(i, j) for i, j, _ in duplicate_pairs(originals)]
        groups = merged_groups([str(k) for k in range(len(originals))], own)
        chosen = np.random.default_rng(0).permutation(len(originals))[:COPIES].tolist()
        images = [Image.fromarray(image_from_file(dataset.files[k])) for k in chosen]
        results: dict[str, Any] = {"images": len(originals), "pairs_of_its_own": len(own)}
        if len(set(dataset.groups)) < len(originals):
            results |= across_groups(dataset.groups, own)
            if results["share_across_given_groups"] >= ACROSS:
                missed.append(f"{data.stem}: images joined across given groups")
        for number, (name, altered) in enumerate(ALTERATIONS.items()):
            rng = np.random.default_rng(number)
            copies = [thumbnail(np.asarray(altered(image, rng).convert("RGB"))) for image in images]
            results[name] = result = measured(originals, groups, chosen, copies)
            print(f"{data.name}: {name}: {result}", file=sys.stderr)
            if name in OF_THE_BAR and result["recall"] < BAR:
                missed.append(f"{data.stem}: {name}")
        document["sets"][data.stem] = results
    document["missed"] = missed
    keep("near-duplicates", document)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()

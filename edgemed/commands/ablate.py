"""`edgemed ablate`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from edgemed import display, tables
from edgemed.commands import goes_on
from edgemed.commands.train import settings, train

DEFAULTS = {"folds": 5, "renyi_order": 2.0}
"""Those that are others than training's."""


def ablate(data: Path, out: Path, cells: str, budget: float, json_: bool, **options: Any) -> None:
    """Find out which part of the method helps on these images.

    Trains the method and its variants (cells) in the same way. Takes the flags of `edgemed train`, which all cells
    share. Cells: masks by entropy, random, low-entropy, each from imagenet and from scratch; none (no pretraining) of
    both; renyi-imagenet (by --renyi-order, which no other cell takes); again-imagenet (another seed).
    """
    config = settings(options | {"start": "imagenet"})  # before torch, as in `train`
    from edgemed.ablate import ablate as run_ablation
    from edgemed.ablation import CELLS
    from edgemed.distributed import follow, process_group

    with process_group(options["device"], options["threads"]) as leads:
        if not leads:
            return follow()
        asked = [name.strip() for name in cells.split(",") if name.strip()] if cells else list(CELLS)
        with goes_on(out), display.progress() as progress:
            found = run_ablation(config, data, out, progress, asked, budget)
    tables.ablation(found, json_, str(out))
    if not json_:
        display.say(f"page: {out / 'ablation.html'}")


def _signature() -> inspect.Signature:
    """Training's options but for those that the cells set, and an ablation's own before the last one."""
    given = inspect.signature(train, eval_str=True)
    shared = [
        option.replace(default=DEFAULTS.get(name, option.default))
        for name, option in given.parameters.items()
        if name not in ("start", "json_")
    ]
    cells = Annotated[
        str, typer.Option(help="Some of the cells, such as none-imagenet,low-entropy-scratch; the others another time.")
    ]
    budget = Annotated[float, typer.Option(min=0, help="Minutes after which no further cell is begun; 0 = no limit.")]
    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = [
        inspect.Parameter("cells", keyword, default="", annotation=cells),
        inspect.Parameter("budget", keyword, default=0.0, annotation=budget),
        given.parameters["json_"],
    ]
    return given.replace(parameters=[*shared, *own])


ablate.__signature__ = _signature()  # type: ignore[attr-defined]

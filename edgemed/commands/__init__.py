"""What the commands do: a module per family, a function per command; `cli.py` puts them together.

Heavy modules are imported inside the functions, so that `edgemed --help` answers at once. This file holds the options
that several commands share.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from edgemed.errors import flag

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Runtime = Annotated[
    str, typer.Option(help="tensorrt, tensorrt-rtx, openvino, onnxruntime; auto: the first that works here.")
]
Precision = Annotated[str, typer.Option(help="Which graph of the bundle: fp32 or fp16.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 = all physical cores that this process may use.")]
Bundle = Annotated[Path, typer.Argument(help="A bundle from `edgemed build-engine`.", show_default=False)]

MaxFlips = Annotated[
    int, typer.Option(min=0, help="Gate: number of labels or decisions that may change, not counting near-ties.")
]
MaxProbError = Annotated[
    float | None,
    typer.Option(min=0, help="Gate: largest error of a probability.", show_default="1e-3 for fp32, 5e-3 for fp16"),
]
MAX_AUROC_DROP = 0.005  # as in gates.Gates, which loads NumPy
MaxAurocDrop = Annotated[
    float, typer.Option(min=0, help="Gate: how far the AUROC may fall; what one pair of images makes is allowed.")
]
Sign = Annotated[
    Path | None, typer.Option(help="Sign what is written with this Ed25519 key (PEM).", show_default=False)
]
VerifyPlans = Annotated[
    Path | None,
    typer.Option(help="With --verify: the public key of the plans, where it is another.", show_default="--verify's"),
]
Plan = Annotated[
    str | None,
    typer.Option(help="One of the bundle's plans, by its id (see inspect).", show_default="the best for this GPU"),
]
Verify = Annotated[
    Path | None,
    typer.Option(help="Refuse what is not signed by this public key (PEM).", show_default=False),
]


def typed_flags(context: typer.Context) -> set[str]:
    """The flags that a command was given, those at the value of their default included."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {flag(name.rstrip("_")) for name, source in sources.items() if source and source.name == "COMMANDLINE"}


@contextmanager
def goes_on(out: Path) -> Iterator[None]:
    """Whoever interrupts a long command is told that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        if out.exists():
            logging.getLogger("edgemed").warning("interrupted; the same command goes on in %s", out)
        raise

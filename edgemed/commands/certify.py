"""`edgemed certify`, `edgemed inspect`: what is proven of a bundle's engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemed import display, tables
from edgemed.commands import (
    MAX_AUROC_DROP,
    Bundle,
    Json,
    MaxAurocDrop,
    MaxFlips,
    MaxProbError,
    Plan,
    Precision,
    Runtime,
    Sign,
    Verify,
    VerifyPlans,
)
from edgemed.errors import InputError


def certify(
    bundle: Bundle,
    data: Annotated[Path, typer.Argument(help="The training's data set, or some of it.", show_default=False)],
    runtime: Runtime = "auto",
    precision: Precision = "fp32",
    max_flips: MaxFlips = 0,
    max_prob_error: MaxProbError = None,
    max_auroc_drop: MaxAurocDrop = MAX_AUROC_DROP,
    plan: Plan = None,
    sign: Sign = None,
    verify: Verify = None,
    json_: Json = False,
) -> None:
    """Prove that an engine answers like PyTorch on this machine.

    DATA is the data set that it was trained with, or a part of it. The images that training held out are found in it by
    their pixels, and the engine's answers on them are compared with those that PyTorch gave.
    """
    from edgemed.bundle import open_bundle
    from edgemed.certify import certify as run_certify
    from edgemed.gates import default_gates
    from edgemed.infer import load
    from edgemed.signature import public_of, read_key, read_private_key

    gates = default_gates(precision, max_flips=max_flips, max_prob_error=max_prob_error, max_auroc_drop=max_auroc_drop)
    if verify is not None and sign is None:
        raise InputError("with --verify, sign the certificate too (--sign KEY): without, --verify will refuse it")
    key = None if sign is None else read_private_key(sign)
    # The plan is this device's: signed, if at all, by the key that will sign its certificate.
    keys = {} if verify is None or key is None else {"public_key": read_key(verify), "plan_key": public_of(key)}
    opened = open_bundle(bundle, **keys)
    model = load(opened, runtime=runtime, precision=precision, uncertified=True, plan=plan)
    with display.progress() as progress:
        found = run_certify(model, data, gates, signing_key=key, progress=progress)
    if json_:
        flips = [str(path) for path in found.flips]
        counts = {key: getattr(found, key) for key in ("files", "unmatched", "unfit", "reference_images")}
        display.document({"record": found.record.model_dump(mode="json"), "flips": flips, **counts})
    else:
        tables.certificate(found)


def inspect(
    bundle: Bundle,
    verify: Verify = None,
    verify_plans: VerifyPlans = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test",
            help="Run the golden images on every runtime that works here; exit code 3 if one fails, or none runs.",
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """Show what is in a bundle, and verify every hash. With --verify, every signature too."""
    from edgemed.bundle import opened_by_keys
    from edgemed.certify import self_tests

    opened = opened_by_keys(bundle, verify, verify_plans)
    opened.verify()
    tests = self_tests(opened) if self_test else None
    tables.inspection(opened, tests, json_)
    if tests is not None and (any(test["failure"] for test in tests) or all(test["not_run"] for test in tests)):
        raise typer.Exit(3)

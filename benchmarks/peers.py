"""The fused engine against what a user would otherwise do: two ConvNeXt-Tiny, 224 px, one image at a time.

    python benchmarks/peers.py [SECONDS]        # of each contender, default 20; some minutes more to build the bundle

Contenders and their settings: `edgemed/contenders.py`. Each has to give the bundle's probabilities before it is timed;
then all run in turn, and ratios of medians come with block-bootstrap intervals. Stated beside them: how much of this
machine's own sgemm rate the engine reaches. Exits with 1 where a bar is missed, or a contender of a bar was not timed.
"""

from __future__ import annotations

import sys
from typing import Any

from common import keep
from twins import twins

from edgemed.conditions import changes, machine, snapshot, warnings
from edgemed.contenders import BY_HAND, COMPILED, EAGER, compared, contenders, lines_of
from edgemed.infer import load
from edgemed.limits import cpu_limits, share_of_limit

SHARE_AIM = 0.8
# What the bundle's latency may be at most, as a share of the contender's. PyTorch: the upper bound of the interval.
BARS = {"PyTorch eager, the better": 1 / 1.2, COMPILED: 0.85, BY_HAND["openvino"]: 1.03, BY_HAND["onnxruntime"]: 1.05}


def verdicts(timed: dict[str, Any]) -> dict[str, Any]:
    """By bar: the bundle's share of the contender's latency with its interval, and whether the bar is met."""
    eager = [timed[name] for name in EAGER if name in timed]
    entries = {**timed}
    if eager:
        entries["PyTorch eager, the better"] = min(eager, key=lambda one: one["times_bundle"]["value"])
    found: dict[str, Any] = {}
    for name, bar in BARS.items():
        if name not in entries:
            found[name] = {"bar": bar, "met": False, "share": "not measured"}
            continue
        times = entries[name]["times_bundle"]
        share = {"value": 1 / times["value"], "low": 1 / times["high"], "high": 1 / times["low"]}
        met = share["high" if name not in timed else "value"] <= bar
        found[name] = {"bar": bar, "met": met, "share": share}
    return found


def main() -> None:
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    seconds = float(sys.argv[1]) if len(sys.argv) == 2 else 20.0
    bundle, ensemble = twins()
    model = load(bundle)
    manifest = model.bundle.manifest
    side = manifest.size
    limits = cpu_limits(model.session.threads)
    others = contenders(model, ensemble, (1, side, side, 3))
    before = snapshot()
    report = compared(model, others, side=side, seconds=seconds)
    conditions = changes(before, snapshot())
    print("\n".join(lines_of(report)), file=sys.stderr)
    reached = share_of_limit(
        limits,
        flops=manifest.flops,
        weight_bytes=manifest.weight_bytes,
        pixel_bytes=side * side * 3,
        batch=1,
        images_per_s=1e3 / report["bundle"]["p50_ms"]["value"],
    )
    bars = verdicts(report["timed"])
    document = {
        "network": f"two {manifest.backbone} at {side} px, seeded random weights",
        "reason": model.reason,
        **report,
        "bars": bars,
        "limits": limits,
        "share_of_sgemm": {"aim": SHARE_AIM, **reached},
        "conditions": conditions,
        "warnings": warnings(machine(), conditions),
    }
    keep("peers", document)
    sys.exit(0 if all(one["met"] for one in bars.values()) else 1)


if __name__ == "__main__":
    main()

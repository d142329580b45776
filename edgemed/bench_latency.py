"""The figures of one measurement's latencies, in a form that another measurement's can be compared with.

    latency_figures(samples, 5.0)["p90"]         # {"value": 12.1, "low": 11.9, "high": 12.4}, ms
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemed.timing import (
    SAMPLES_ABOVE,
    block_count,
    mean_interval,
    percentile_intervals,
    resampled_means,
    resampled_percentiles,
)

PERCENTILES = (50, 90, 95, 99)
FIGURES = ("mean", *(f"p{q}" for q in PERCENTILES))
P99_SAMPLES = 100 * SAMPLES_ABOVE


def latency_figures(samples: list[float], seconds: float) -> dict[str, Any]:
    """Figures of samples (N,) in ms in the order of time, which took so many seconds; ready for JSON.

    mean, p50, p90, p95, p99 with 95 % intervals: none below 6 samples, of p90 and p95 none below 100 and 200; p99 is
    None below 1,000. max; cov, the standard deviation over the mean; blocks and resampled: 101 quantiles of each figure
    in the resamples of so many blocks, by which `bench_diff` compares two measurements without their samples.
    """
    blocks = block_count(samples, seconds)
    mean, percentiles = mean_interval(samples, blocks), percentile_intervals(samples, PERCENTILES, blocks)
    figures = {name: each.as_dict() for name, each in zip(FIGURES, (mean, *percentiles), strict=True)}
    drawn = np.column_stack([resampled_means(samples, blocks), resampled_percentiles(samples, PERCENTILES, blocks)])
    quantiles = np.quantile(drawn, (np.arange(101) + 0.5) / 101, axis=0).T
    return {
        **figures,
        "p99": figures["p99"] if len(samples) >= P99_SAMPLES else None,
        "max": max(samples),
        "cov": float(np.std(samples)) / mean.value,
        "blocks": blocks,
        "resampled": {
            name: of.tolist() for name, of in zip(FIGURES, quantiles, strict=True) if figures[name]["low"] is not None
        },
    }


def p99_note(count: int, seconds: float) -> str:
    """What a p99 would take, where so many samples of so many seconds are too few for it."""
    return f"needs {P99_SAMPLES} samples, has {count}: --duration {int(seconds * P99_SAMPLES / count * 1.1) + 1}"

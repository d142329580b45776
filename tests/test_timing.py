"""Every call counts, contenders meet the same machine, and intervals hold although neighbours resemble each other."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter

import numpy as np
import pytest

from edgemed import timing
from edgemed.errors import InputError
from edgemed.timing import (
    block_count,
    difference_interval,
    interleaved,
    mean_interval,
    percentile,
    percentile_intervals,
    ratio_interval,
    stability,
    timed,
)


def series(seed: int, n: int = 1000, rho: float = 0.95) -> np.ndarray:
    """Samples (n,) around a median of 10 whose neighbours correlate with `rho`."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=n) * np.sqrt(1 - rho**2)
    noise[0] = rng.normal()
    return 10 + np.fromiter(itertools.accumulate(noise, lambda before, new: rho * before + new), float, n)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock that stands until a test moves it: [nanoseconds]. `sleep` moves it."""
    now = [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + int(seconds * 1e9)))
    return now


def test_every_call_is_a_sample_in_the_order_of_time(clock: list[int]) -> None:
    steps = iter([1, 2, 500, 3, 4])

    def call() -> None:
        clock[0] += next(steps) * 1_000_000

    found = timed(call, seconds=0, requests=5)
    assert found.latencies == [1, 2, 500, 3, 4]  # the slow one too
    assert found.seconds == pytest.approx(0.510)


def test_warm_up_and_duration_are_seconds_and_idle_time_is_no_latency(clock: list[int]) -> None:
    calls, begun = [0], []

    def call() -> None:
        calls[0] += 1
        clock[0] += 1_000_000

    found = timed(call, seconds=1.0, warmup=0.1, idle=0.009, begin=lambda: begun.append(calls[0]))
    assert begun == [10]  # ten calls of 1 ms, 9 ms after one another, fill the warm-up
    assert found.latencies == [1.0] * 100
    assert found.seconds == pytest.approx(1.0)


def test_streams_call_at_the_same_time_and_each_warms_up_itself() -> None:
    together = threading.Barrier(3, timeout=60)
    seen: Counter[int] = Counter()

    def call() -> None:
        seen[threading.get_ident()] += 1
        together.wait()  # passes only where three calls are in flight

    found = timed(call, seconds=0, requests=4, streams=3)
    assert len(found.latencies) == 12
    assert sorted(seen.values()) == [4, 4, 4]


@pytest.mark.parametrize("slow", [0, 1])
def test_a_measurement_ends_with_the_last_answer_of_all_streams(slow: int) -> None:
    numbers, together = itertools.count(), threading.Barrier(2, timeout=60)

    def call() -> None:
        number = next(numbers)
        together.wait()
        time.sleep(0.2 if number == slow else 0)

    found = timed(call, seconds=0, requests=1, streams=2)
    assert found.seconds >= 0.2


def test_a_fault_in_one_stream_ends_the_measurement_with_that_fault() -> None:
    first = threading.Lock()

    def call() -> None:
        if first.acquire(blocking=False):
            raise InputError("it broke")

    with pytest.raises(InputError, match="it broke"):
        timed(call, seconds=0.01, warmup=0.01, streams=3)


def test_contenders_take_turns_in_an_order_that_changes(clock: list[int]) -> None:
    seen: list[str] = []

    def call(name: str, milliseconds: int) -> None:
        seen.append(name)
        clock[0] += milliseconds * 1_000_000

    found = interleaved({"a": lambda: call("a", 1), "b": lambda: call("b", 2), "c": lambda: call("c", 3)}, 40, warmup=1)
    assert found == {"a": [1.0] * 40, "b": [2.0] * 40, "c": [3.0] * 40}
    rounds = ["".join(seen[k : k + 3]) for k in range(0, len(seen), 3)]
    assert len(rounds) == 41
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) == 6  # every order comes up


@pytest.mark.parametrize("n", [1, 2, 7, 100, 9000])
def test_a_percentile_is_a_sample_that_was_measured(n: int) -> None:
    samples = np.random.default_rng(n).gamma(2, size=n)
    for q in (50, 90, 95, 99):
        value = percentile(samples, q)
        assert value in samples
        assert (samples <= value).mean() >= q / 100 > (samples < value).mean()


def test_intervals_hold_the_truth_where_neighbours_resemble_each_other() -> None:
    held, naive = 0, 0
    for seed in range(100):
        samples = series(seed)
        [median] = percentile_intervals(samples, (50,))
        held += median.low <= 10 <= median.high
        rng = np.random.default_rng(seed)
        alone = np.median(rng.choice(samples, (100, len(samples))), axis=1)
        naive += np.quantile(alone, 0.025) <= 10 <= np.quantile(alone, 0.975)
    assert held >= 87  # 95 would be ideal
    assert naive <= 50  # what drawing single samples makes of the same series


def test_intervals_of_independent_samples_keep_their_promise() -> None:
    found = []
    for seed in range(200):
        samples = np.random.default_rng(seed).exponential(size=200)
        [p50, p90] = percentile_intervals(samples, (50, 90))
        mean = mean_interval(samples)
        truths = (np.log(2), np.log(10), 1)
        found.append([one.low <= truth <= one.high for one, truth in zip((p50, p90, mean), truths, strict=True)])
    assert (np.mean(found, axis=0) > 0.86).all()
    assert (np.mean(found, axis=0) < 0.99).all()


@pytest.mark.parametrize(("q", "enough"), [(90, 100), (95, 200), (99, 1000)])
def test_a_percentile_that_too_few_samples_lie_beyond_has_no_bounds(q: int, enough: int) -> None:
    samples = np.random.default_rng(q).gamma(9, size=enough).tolist()
    [few], [many] = (percentile_intervals(samples[:count], (q,)) for count in (enough - 1, enough))
    assert few.as_dict() == {"value": percentile(samples[:-1], q), "low": None, "high": None}
    assert many.low <= many.value <= many.high


def test_an_interval_narrows_with_more_samples_and_holds_its_value() -> None:
    widths = []
    for n in (20, 200, 2000, 20000):
        samples = np.random.default_rng(1).gamma(9, size=n)
        [p50] = percentile_intervals(samples, (50,))
        assert p50.low <= p50.value <= p50.high
        widths.append(p50.high - p50.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 10


@pytest.mark.parametrize("ms", [0.2, 1, 20, 100])
def test_intervals_hold_as_much_of_a_fast_engine_as_of_a_slow_one(ms: float) -> None:
    """A disturbance of a tenth of a second lasts for 500 requests of the one and for one of the other."""
    n, held = int(5000 / ms), 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        slow = series(1000 + seed, n, rho=float(np.exp(-ms / 100))) - 10
        [p50] = percentile_intervals(ms * np.exp(0.02 * (rng.normal(size=n) + slow)), (50,))
        held += p50.low <= ms <= p50.high
    assert held >= 84  # 95 would be ideal


def test_blocks_are_of_half_a_second_however_many_requests_are_in_flight() -> None:
    assert block_count([10.0] * 2000) == 40  # 20 s, one after the other
    assert block_count([10.0] * 2000, seconds=10.0) == 20  # two at a time
    assert [block_count([10.0] * n) for n in (1, 9, 100, 10**5)] == [1, 9, 10, 100]


def test_the_interval_of_p99_holds_of_very_many_samples() -> None:
    truth, held = np.exp(0.1 * 2.3263478740408408), 0
    for seed in range(60):
        [p99] = percentile_intervals(np.exp(0.1 * np.random.default_rng(seed).normal(size=200_000)), (99,))
        held += p99.low <= truth <= p99.high
    assert 52 <= held <= 60


@pytest.mark.parametrize("n", [1, 5, 6])
def test_a_handful_of_samples_has_no_bounds(n: int) -> None:
    samples = [4.0, 5.0, 3.0, 4.5, 3.5, 6.0][:n]
    found = [*percentile_intervals(samples, (50,)), mean_interval(samples), ratio_interval(samples, samples)]
    assert [one.value for one in found] == [percentile(samples, 50), pytest.approx(np.mean(samples)), 1]
    assert [one.as_dict()["low"] is None for one in found] == [n < 6] * 3


def test_what_disturbs_both_cancels_out_of_a_paired_ratio() -> None:
    drift = 10 + 5 * np.sin(np.linspace(0, 6, 300))
    rng = np.random.default_rng(0)
    a, b = (drift * factor * (1 + 0.01 * rng.normal(size=300)) for factor in (1.2, 1.0))
    paired, apart = ratio_interval(a, b, paired=True), ratio_interval(a, b)
    assert 1.1 < paired.low <= 1.2 <= paired.high < 1.3
    assert apart.high - apart.low > 3 * (paired.high - paired.low)


def test_a_paired_difference_is_in_milliseconds_and_what_disturbs_both_cancels() -> None:
    drift = 10 + 5 * np.sin(np.linspace(0, 6, 300))
    a = drift + 0.5 + 0.01 * np.random.default_rng(0).normal(size=300)
    found = difference_interval(a, drift)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(0.5, abs=0.02) and found.high - found.low < 0.1
    with pytest.raises(InputError, match="3 and 2"):
        difference_interval([1, 1, 1], [1, 1])


def test_paired_samples_come_in_equal_numbers() -> None:
    with pytest.raises(InputError, match="3 and 2"):
        ratio_interval([1, 1, 1], [1, 1], paired=True)


def test_a_run_that_drifts_or_jumps_has_not_settled() -> None:
    rng = np.random.default_rng(0)
    steady = 10 + 0.3 * rng.normal(size=100)
    spikes = steady.copy()
    spikes[::20] *= 10
    jump = steady.copy()
    jump[80:] *= 1.3
    assert stability(steady).settled
    assert stability(spikes).settled  # a matter for p99
    assert not stability(jump).settled
    assert not stability(steady * np.linspace(1, 1.4, 100)).settled
    fast = steady.copy()
    fast[80:] *= 0.7
    assert not stability(fast).settled
    assert stability(jump).spread == pytest.approx(0.3, abs=0.05)
    assert len(stability(jump).windows) == timing.WINDOWS


def test_few_samples_do_not_show_that_a_run_settled() -> None:
    assert stability([1.0] * 14) == (False, [], None)
    assert stability([1.0] * 15).settled


@pytest.mark.parametrize("wrong", [[], [1.0, float("nan")], [float("inf")]])
def test_samples_that_mean_nothing_are_refused(wrong: list[float]) -> None:
    for function in (mean_interval, stability, lambda samples: percentile_intervals(samples, (50,))):
        with pytest.raises(InputError):
            function(wrong)  # type: ignore[operator]

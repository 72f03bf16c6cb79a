"""Whatever recording an upload may be: it can be cut, judged and proposed from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaecg import load_base
from metaecg.serve.proposals import propose
from metaecg.serve.segment_probabilities import probabilities, rhythms_of
from metaecg.serve.segments import segmentation_of

BASES = {name: load_base(name) for name in ("va-base", "veb-base")}
RATES_HZ = (100.0, 125.0, 128.0, 257.0, 300.5, 360.0, 500.0, 1000.0, 2000.0)
SHAPES = {
    "flat": lambda rng, n: np.zeros(n),
    "flat at the limit": lambda rng, n: np.full(n, 1e4),
    "noise of any size": lambda rng, n: rng.standard_normal(n) * 10 ** rng.uniform(-38, 3),
    "from limit to limit": lambda rng, n: np.where(rng.random(n) < 0.5, -1e4, 1e4),
    "a spike": lambda rng, n: 1e4 * (np.arange(n) == rng.integers(n)),
    "a walk": lambda rng, n: np.cumsum(rng.standard_normal(n)),
    "a comb": lambda rng, n: 1.0 * (np.arange(n) % int(rng.integers(1, 400)) == 0),
}
GAPS = {
    "none": lambda rng, n: np.zeros(n, dtype=bool),
    "everywhere": lambda rng, n: rng.random(n) < 0.01,
    "every second sample": lambda rng, n: np.arange(n) % 2 == 0,
    "all but one": lambda rng, n: np.arange(n) != rng.integers(n),
    "a second": lambda rng, n: abs(np.arange(n) - rng.integers(n)) < 100,
}


@pytest.mark.parametrize("name", BASES)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    fs_hz=st.sampled_from(RATES_HZ),
    seconds=st.sampled_from((0.001, 0.5, 2.0, 2.01, 8.0, 35.0)),
    shape=st.sampled_from(sorted(SHAPES)),
    gaps=st.sampled_from(sorted(GAPS)),
)
def test_every_recording_can_be_cut_judged_and_proposed_from(
    name, seed, fs_hz, seconds, shape, gaps
):
    base, rng = BASES[name], np.random.default_rng(seed)
    n = max(1, int(seconds * fs_hz))
    values = np.clip(SHAPES[shape](rng, n), -1e4, 1e4).astype(np.float32)
    signal_mv = np.where(GAPS[gaps](rng, n), np.float32(np.nan), values)[None]
    found = segmentation_of(base)
    found.check_rate(fs_hz)
    segments, inputs = found.inputs(signal_mv, fs_hz, found.peaks(signal_mv, fs_hz))
    assert np.isfinite(inputs).all()
    for rhythm in rhythms_of(base):
        judged = probabilities(base, None, segments, inputs, rhythm)
        assert judged.shape == (len(segments), 2)
        assert np.isfinite(judged).all()
    proposed = propose(inputs, segments, {}, judged, 5, classes=base.classes)
    assert len(proposed) == min(5, len(segments))

"""A live stream says what the whole recording says, whatever the chunks, also after a restart."""

import numpy as np
import pytest
from serve_cases import RHYTHM, make_base, personal_of, windows_like

from metaecg.errors import CheckpointError, DataError
from metaecg.models.checkpoints import load_base
from metaecg.serve.adapter_file import adapter_bytes, load_adapter
from metaecg.serve.mixed import MixedBatch
from metaecg.serve.segments import segmentation_of
from metaecg.serve.streams import LiveStream


@pytest.fixture(scope="module")
def base():
    return make_base(width=8, rhythm=RHYTHM)


@pytest.fixture(scope="module")
def personal(base):
    return personal_of(base, rhythm="causal", n_steps=10)


@pytest.fixture(scope="module")
def signal_mv():
    """Forty seconds at 128 Hz with two gaps: (1, n)."""
    signal = np.random.default_rng(5).normal(size=(1, 5120)).astype(np.float32)
    signal[:, 1000:1100] = np.nan
    signal[:, 3333:3334] = np.nan
    return signal


def offline(base, model, signal_mv, *, rhythm):
    """Return numbers, starts and probabilities of the whole recording."""
    segments, windows = segmentation_of(base).inputs(signal_mv, 128.0)
    if rhythm == "causal":
        probability = model.predict_proba(windows, time_s=segments.start_s)
    else:
        probability = model.predict_proba(windows)
    return segments.index, segments.start_s, probability


def pushed(stream, signal_mv, seed=0):
    """Push a signal in chunks of random length, some of them empty."""
    rng, at, found = np.random.default_rng(seed), 0, []
    while at < signal_mv.shape[1]:
        n = int(rng.integers(0, 700))
        found += stream.push(signal_mv[:, at : at + n])
        at += n
    return found


def assert_equal(found, expected, atol=2e-5):
    index, start_s, probability = expected
    assert [window.index for window in found] == index.tolist()
    np.testing.assert_allclose([window.start_s for window in found], start_s)
    np.testing.assert_allclose([window.stop_s - window.start_s for window in found], 1.0)
    np.testing.assert_allclose([w.probability for w in found], probability, atol=atol)


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_equals_the_causal_prediction_of_the_whole(base, personal, signal_mv, seed):
    stream = LiveStream(base, personal, fs_hz=128.0)
    found = pushed(stream, signal_mv, seed) + stream.close()
    expected = offline(base, personal, signal_mv, rhythm="causal")
    assert len(expected[0]) == 37 and stream.rhythm == "causal"
    assert_equal(found, expected)


def test_the_published_base_streams_as_offline(signal_mv):
    base = load_base("va-base")
    personal = personal_of(base, rhythm="causal")
    stream = LiveStream(base, personal, fs_hz=128.0)
    found = pushed(stream, signal_mv) + stream.close()
    index, _, expected = offline(base, personal, signal_mv, rhythm="causal")
    assert [window.index for window in found] == index.tolist()
    np.testing.assert_allclose([w.probability for w in found], expected, atol=2e-4)


def test_without_a_rhythm_every_window_stands_for_itself(base, personal, signal_mv):
    plain = personal_of(base, n_steps=10)
    stream = LiveStream(base, plain, fs_hz=128.0, rhythm="none")
    found = pushed(stream, signal_mv) + stream.close()
    assert_equal(found, offline(base, plain, signal_mv, rhythm="none"))


def test_a_base_without_a_rhythm_streams_without_one(signal_mv):
    base = make_base(width=8)
    stream = LiveStream(base, fs_hz=128.0)
    assert stream.rhythm == "none"
    found = pushed(stream, signal_mv) + stream.close()
    assert_equal(found, offline(base, base, signal_mv, rhythm="none"))
    with pytest.raises(ValueError, match="rhythm is 'causal'; expected one of none"):
        LiveStream(base, fs_hz=128.0, rhythm="causal")


def test_the_base_alone_streams_with_its_own_chain(base, personal, signal_mv):
    found = pushed(LiveStream(base, fs_hz=128.0), signal_mv)
    _, start_s, probability = offline(base, base, signal_mv, rhythm="none")
    log_odds = np.log(probability[:, 1] / probability[:, 0])
    expected = RHYTHM.posterior(log_odds, start_s, mode="causal")
    values = np.array([window.probability[1] for window in found])
    np.testing.assert_allclose(values, 1 / (1 + np.exp(-expected[: len(found)])), atol=2e-5)


def test_a_stored_stream_goes_on_bit_for_bit_wherever_it_was_put_down(base, personal, signal_mv):
    mixed = MixedBatch(base)
    data = adapter_bytes(personal)
    whole = LiveStream(base, mixed.model_of(mixed.reader.read(data)), fs_hz=128.0)
    expected, found, state = [], [], whole.to_bytes()
    for start in range(0, 5120, 320):
        chunk = signal_mv[:, start : start + 320]
        expected += whole.push(chunk)
        # Everything is loaded anew, as after a restart.
        stream = LiveStream.from_bytes(state, base, mixed.model_of(mixed.reader.read(data)))
        found += stream.push(chunk)
        state = stream.to_bytes()
        assert len(state) < 20_000
    expected += whole.close()
    found += LiveStream.from_bytes(state, base, mixed.model_of(mixed.reader.read(data))).close()
    assert [window.index for window in found] == [window.index for window in expected]
    for window, other in zip(found, expected, strict=True):
        assert np.array_equal(window.probability, other.probability)


def test_a_patients_model_and_the_personalizer_own_the_same_stream(base, personal, signal_mv):
    mixed, data = MixedBatch(base), adapter_bytes(personal)
    stream = LiveStream(base, load_adapter(data, base), fs_hz=128.0)
    stream.push(signal_mv[:, :700])
    other = LiveStream.from_bytes(stream.to_bytes(), base, mixed.model_of(mixed.reader.read(data)))
    for window, same in zip(stream.push(signal_mv), other.push(signal_mv), strict=True):
        np.testing.assert_allclose(window.probability, same.probability, atol=1e-5)


def test_a_state_of_another_detector_or_base_is_refused(base, personal):
    state = LiveStream(base, personal, fs_hz=128.0).to_bytes()
    other_base = make_base(width=8, rhythm=RHYTHM, seed=1)
    strangers = [(base, None), (base, personal_of(base, seed=1, rhythm="causal"))]
    for other, model in [*strangers, (other_base, None)]:
        with pytest.raises(CheckpointError, match="another base or detector"):
            LiveStream.from_bytes(state, other, model)


def test_a_damaged_state_is_refused(base):
    state = LiveStream(base, fs_hz=128.0).to_bytes()
    for data in (
        b"",
        state[:-1],
        state[:20],
        state + b"x",
        b"\0" * 100,
        state.replace(b"ver", b"x"),
    ):
        with pytest.raises(CheckpointError, match="Start a new stream"):
            LiveStream.from_bytes(data, base)


def test_a_closed_stream_takes_nothing_more(base, signal_mv):
    stream = LiveStream(base, fs_hz=128.0)
    stream.push(signal_mv[:, :700])
    stream.close()
    for again in (stream, LiveStream.from_bytes(stream.to_bytes(), base)):
        assert again.is_closed
        with pytest.raises(DataError, match="closed"):
            again.push(signal_mv)
        with pytest.raises(DataError, match="closed"):
            again.close()


def test_what_cannot_be_streamed_is_refused_at_once(base):
    with pytest.raises(DataError, match="judges beats"):
        LiveStream(load_base("veb-base"), fs_hz=128.0)
    with pytest.raises(ValueError, match="fs_hz is 0"):
        LiveStream(base, fs_hz=0)
    with pytest.raises(DataError, match="can't be resampled"):
        LiveStream(base, fs_hz=100.00173)
    with pytest.raises(DataError, match=r"shape \(2, 5\)"):
        LiveStream(base, fs_hz=128.0).push(np.zeros((2, 5)))


def test_an_open_stream_stays_with_its_detector_when_the_personalizer_is_fitted_again(
    base, signal_mv
):
    personal, twin = (personal_of(base, "full", rhythm="causal") for _ in range(2))
    stream, same = (LiveStream(base, model, fs_hz=128.0) for model in (personal, twin))
    windows = windows_like(base, 6)
    personal.fit(windows, [1, 0] * 3, time_s=np.arange(6) * 2.0)
    for found, expected in zip(stream.push(signal_mv), same.push(signal_mv), strict=True):
        assert np.array_equal(found.probability, expected.probability)
    with pytest.raises(CheckpointError, match="another base or detector"):
        LiveStream.from_bytes(stream.to_bytes(), base, personal)

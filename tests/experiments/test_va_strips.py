"""The strips of the report lie where the recording has them, whatever the rate of the windows."""

import numpy as np
import pytest

from metaecg.data.windows import WindowSet
from metaecg.experiments.va_outputs import STRIP_FS_HZ, _signal


def ramp(fs_hz: float, *, start_s: list[float], window_s: float = 2.0) -> WindowSet:
    """Return windows of a signal whose value is the time in seconds."""
    start = np.array(start_s)
    within_s = np.arange(round(window_s * fs_hz)) / fs_hz
    n = len(start)
    return WindowSet(
        windows=(start[:, None, None] + within_s).astype(np.float32),
        labels=np.zeros(n, dtype=np.int64),
        is_mixed=np.zeros(n, dtype=bool),
        subject_ids=np.full(n, "own/p"),
        record_ids=np.full(n, "own/p"),
        start_s=start,
        time_s=start,
        fs_hz=fs_hz,
        window_s=window_s,
    )


@pytest.mark.parametrize("fs_hz", [100.0, 125.0, 128.0, 200.0, 250.0, 360.0])
def test_a_value_stands_at_its_time_at_every_rate(fs_hz):
    signal = _signal(ramp(fs_hz, start_s=[10.0, 12.0, 14.0]), 10.0)
    shown = np.array(signal[:600], dtype=float)
    # A window's last value is held to its end: at most the 10 ms of the strip's own step.
    assert np.abs(shown - (10.0 + np.arange(600) / STRIP_FS_HZ)).max() <= 0.01
    assert signal[600:] == [None] * 5400


def test_a_gap_between_windows_stays_a_gap():
    signal = _signal(ramp(125.0, start_s=[10.0, 14.0]), 10.0)
    assert None not in signal[:200] and set(signal[200:400]) == {None}
    assert None not in signal[400:600]

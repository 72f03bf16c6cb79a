"""Windows that can't be used are refused before a network sees them."""

import numpy as np
import pytest

from metaecg.checks import check_windows
from metaecg.errors import DataError


def windows(value: float, dtype=np.float64) -> np.ndarray:
    found = np.zeros((3, 1, 5), dtype)
    found[2, 0, 1] = value
    return found


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_named(value):
    with pytest.raises(DataError, match=r"windows\[2\] holds NaN or infinite samples"):
        check_windows(windows(value))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(1e39, np.float64), (-1e39, np.float64), (3e38, np.float32), (-1.1e6, np.float32)],
)
def test_what_is_far_from_millivolts_is_refused_also_where_float32_makes_it_infinite(value, dtype):
    with pytest.raises(DataError, match=r"windows\[2\] has a sample of -?.*e\+.* mV.*1e\+06"):
        check_windows(windows(value, dtype))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16])
def test_what_can_be_used_comes_back_as_float32_to_the_number(dtype):
    found = check_windows(windows(-123, dtype))
    assert found.dtype == np.float32 and found[2, 0, 1] == -123


def test_no_window_is_allowed():
    assert check_windows(np.zeros((0, 1, 5))).shape == (0, 1, 5)


def test_the_largest_sample_that_is_allowed_is():
    assert check_windows(windows(1e6)).max() == 1e6


def test_float32_windows_are_not_copied():
    given = windows(1, np.float32)
    assert check_windows(given) is given

"""Units: an upload, a stretch that is judged and a stream take the same spellings."""

import json

import numpy as np
import pytest

from metaecg.errors import DataError
from metaecg.serve.units import in_millivolts
from metaecg.serve.uploads import parse_upload

SPELT = {"mV": 1.0, "MV": 1.0, "uV": 1e-3, "\u00b5V": 1e-3, "\u03bcV": 1e-3, " UV ": 1e-3, "V": 1e3}


@pytest.mark.parametrize("unit", SPELT)
def test_a_unit_means_the_same_in_an_upload_and_in_a_signal_that_is_judged(unit):
    document = {"fs_hz": 250, "lead_names": ["II"], "signal": [[1.5, None]], "unit": unit}
    uploaded = parse_upload("json", {"a.json": json.dumps(document).encode()}).signal_mv[0]
    judged = in_millivolts(np.array([1.5, np.nan], dtype=np.float32), unit)
    np.testing.assert_allclose(judged, [1.5 * SPELT[unit], np.nan])
    np.testing.assert_allclose(uploaded, judged)


@pytest.mark.parametrize("unit", ["", "mmHg", "m V", "kV"])
def test_what_is_no_voltage_is_refused_in_both(unit):
    document = {"fs_hz": 250, "lead_names": ["II"], "signal": [[1.5, None]], "unit": unit}
    with pytest.raises(DataError, match="expected mV, uV or V"):
        parse_upload("json", {"a.json": json.dumps(document).encode()})
    with pytest.raises(DataError, match="expected mV, uV or V"):
        in_millivolts(np.ones(3, dtype=np.float32), unit)


def test_ten_volts_are_the_most():
    assert in_millivolts(np.float32([1e4, np.nan]), "mV")[0] == 1e4
    with pytest.raises(DataError, match="beyond 10000 mV"):
        in_millivolts(np.float32([10.1]), "V")

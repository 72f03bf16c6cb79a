"""Which voltages a signal may come in, and how it becomes millivolts: said here for every way in."""

import numpy as np

from metaecg.errors import DataError

MV_PER_UNIT = {"mv": 1.0, "uv": 1e-3, "v": 1e3}  # by lower-case unit, µ spelt u
MAX_ABS_MV = 1e4
"""Ten volts: no electrode gives more, so the unit or the gain is wrong."""


def mv_per_unit(unit: object, *, where: str) -> float:
    """Return the millivolts of one `unit`; a unit that is no voltage is a DataError.

    Examples
    --------
    >>> mv_per_unit("µV", where="the signal")
    0.001
    """
    text = str(unit).strip()
    for micro in ("\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}"):
        text = text.replace(micro, "u")
    if not isinstance(unit, str) or text.lower() not in MV_PER_UNIT:
        raise DataError(
            f"{where}: the unit is {str(unit)[:60]!r}; expected mV, uV or V. Convert the signal to "
            "millivolts, or leave out what is no ECG lead."
        )
    return MV_PER_UNIT[text.lower()]


def in_millivolts(signal: np.ndarray, unit: str) -> np.ndarray:
    """Return a signal in millivolts, float32; NaN stays NaN.

    Raises
    ------
    DataError
        The unit is no voltage, or a sample is beyond `MAX_ABS_MV`.

    Examples
    --------
    >>> in_millivolts(np.array([500.0], dtype=np.float32), "uV").tolist()
    [0.5]
    """
    scale = mv_per_unit(unit, where="the signal")
    signal_mv = signal if scale == 1.0 else (signal * scale).astype(np.float32)
    if not (np.abs(signal_mv[~np.isnan(signal_mv)]) <= MAX_ABS_MV).all():
        raise DataError(
            f"the signal goes beyond {MAX_ABS_MV:g} mV, which no ECG does. Check the unit."
        )
    return signal_mv

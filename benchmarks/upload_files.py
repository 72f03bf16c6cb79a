"""Recordings as the files that people upload: WFDB, EDF, CSV and JSON, written without any library.

For `upload_fuzz.py` and the tests of uploads. Samples lie on a grid of 1/200 mV, which all four
formats hold.
"""

import json
from dataclasses import dataclass

import numpy as np

GAIN = 200
FORMATS = ("wfdb", "edf", "csv", "json")
LEADS = ("MLII", "V5", "II")


@dataclass(frozen=True)
class Made:
    """A recording whose answer is known."""

    steps: np.ndarray
    """Shape ``(n_leads, n_samples)``, int64: millivolts times `GAIN`."""
    gaps: np.ndarray
    """Same shape, bool: not measured."""
    fs_hz: int
    lead_names: tuple[str, ...]

    @property
    def signal_mv(self) -> np.ndarray:
        """Millivolts, float32, NaN in the gaps."""
        return np.where(self.gaps, np.nan, self.steps / GAIN).astype(np.float32)


@dataclass(frozen=True)
class Upload:
    """Files, and what is stated beside them (keywords of `UploadFacts`)."""

    format: str
    files: dict[str, bytes]
    facts: dict


def made_recording(rng: np.random.Generator, *, has_gaps: bool) -> Made:
    """Return a recording of one to three leads and some seconds."""
    n_leads, fs_hz = int(rng.integers(1, 4)), int(rng.choice([125, 250, 360, 500]))
    n_samples = fs_hz * int(rng.integers(1, 5))  # whole seconds, the data records of EDF
    gaps = np.zeros((n_leads, n_samples), dtype=bool)
    if has_gaps:
        start = int(rng.integers(0, n_samples - 1))
        gaps[rng.integers(n_leads), start : start + int(rng.integers(1, 40))] = True
    steps = rng.integers(-1000, 1001, gaps.shape)
    return Made(steps, gaps, fs_hz, LEADS[:n_leads])


def as_wfdb(made: Made, *, format: str = "16") -> Upload:
    """Return header and signal file, format 16 or 212."""
    missing = -(2**15) if format == "16" else -(2**11)
    frames = np.where(made.gaps, missing, made.steps).T  # (n_samples, n_leads)
    data = frames.astype("<i2").tobytes() if format == "16" else _packed_212(frames.reshape(-1))
    lines = [f"rec {len(made.lead_names)} {made.fs_hz} {frames.shape[0]}"]
    for i, name in enumerate(made.lead_names):
        total = int(frames[:, i].sum()) & 0xFFFF
        checksum = total - 0x10000 if total >= 0x8000 else total
        lines.append(f"rec.dat {format} {GAIN}/mV 12 0 {frames[0, i]} {checksum} 0 {name}")
    text = "\n".join([*lines, "# made up", ""])
    return Upload("wfdb", {"rec.hea": text.encode(), "rec.dat": data}, {})


def _packed_212(values: np.ndarray) -> bytes:
    """Return pairs of 12-bit numbers in three bytes; an odd one at the end with a zero."""
    pairs = np.pad(values, (0, len(values) % 2)).reshape(-1, 2) & 0xFFF
    first, second = pairs[:, 0], pairs[:, 1]
    packed = [first & 0xFF, (first >> 8) | ((second >> 8) << 4), second & 0xFF]
    return np.stack(packed, axis=1).astype(np.uint8).tobytes()


def as_edf(made: Made) -> Upload:
    """Return an EDF file with data records of a second; it can't hold gaps."""
    n_leads, n_samples = made.steps.shape
    n_records = n_samples // made.fs_hz
    main = ["0", "X X X X", "Startdate X X X X", "01.01.24", "00.00.00"]
    main += [256 * (n_leads + 1), "", n_records, 1, n_leads]
    widths = (8, 80, 80, 8, 8, 8, 44, 8, 8, 4)
    top = 32000 // GAIN
    columns = (made.lead_names, "", "mV", -top, top, -32000, 32000, "", made.fs_hz, "")
    header = [str(value).ljust(width) for value, width in zip(main, widths, strict=True)]
    for value, width in zip(columns, (16, 80, 8, 8, 8, 8, 8, 80, 8, 32), strict=True):
        values = value if isinstance(value, tuple) else [value] * n_leads
        header += [str(one).ljust(width) for one in values]
    records = made.steps.reshape(n_leads, n_records, made.fs_hz).swapaxes(0, 1)
    return Upload(
        "edf", {"rec.edf": "".join(header).encode() + records.astype("<i2").tobytes()}, {}
    )


def as_csv(made: Made, *, has_names: bool = True, gap: str = "nan") -> Upload:
    """Return a CSV file, its lead names in the first row or stated beside it."""
    fields = np.where(made.gaps, gap, (made.steps / GAIN).astype(str)).T
    lines = [",".join(row) for row in fields]
    facts = {"fs_hz": float(made.fs_hz), "unit": "mV"}
    if has_names:
        lines.insert(0, ",".join(made.lead_names))
    else:
        facts["lead_names"] = made.lead_names
    return Upload("csv", {"rec.csv": ("\n".join(lines) + "\n").encode()}, facts)


def as_json(made: Made) -> Upload:
    """Return a JSON document."""
    signal = [
        [None if gap else step / GAIN for step, gap in zip(*rows, strict=True)]
        for rows in zip(made.steps.tolist(), made.gaps.tolist(), strict=True)
    ]
    document = {"fs_hz": made.fs_hz, "unit": "mV", "lead_names": made.lead_names}
    return Upload("json", {"rec.json": json.dumps({**document, "signal": signal}).encode()}, {})

"""Small recordings, on disk and in memory, whose answers can be read off."""

import numpy as np
import pytest
import wfdb

from metaecg.data.records import Annotations, Record

NORMAL = ((0, "+", "(N"),)


@pytest.fixture
def write_record(tmp_path):
    """Write a WFDB record with wfdb's own writer; return its path without extension.

    ``write(digital, ...)`` takes whole numbers of shape ``(n_samples, n_leads)``; `marks` are
    ``(sample, symbol, note)``.
    """

    def write(digital, *, name="r1", folder="own", fs_hz=250, fmt="16", gain=200.0, baseline=0,
              unit="mV", leads=None, marks=NORMAL):  # fmt: skip
        digital = np.asarray(digital, dtype=np.int64).reshape(len(digital), -1)
        n_leads = digital.shape[1]
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        wfdb.wrsamp(
            name,
            fs=fs_hz,
            units=[unit] * n_leads,
            sig_name=leads or [f"lead{i}" for i in range(n_leads)],
            d_signal=digital,
            fmt=[fmt] * n_leads,
            adc_gain=[gain] * n_leads,
            baseline=[baseline] * n_leads,
            write_dir=str(path.parent),
        )
        if marks:
            samples, symbols, notes = zip(*marks, strict=True)
            wfdb.wrann(
                name,
                "atr",
                np.array(samples),
                symbol=list(symbols),
                aux_note=list(notes),
                write_dir=str(path.parent),
            )
        return path

    return write


@pytest.fixture
def edit_header():
    """Replace text in a record's header: ``edit(path, old, new)``; `old` has to be there."""

    def edit(path, old, new):
        header = path.with_name(path.name + ".hea")
        text = header.read_text()
        assert old in text, f"{old!r} isn't in {text!r}"
        header.write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


@pytest.fixture
def make_record():
    """Build a `Record` in memory: ``make(signal_mv, marks=..., fs_hz=...)``."""

    def make(signal_mv, *, marks=NORMAL, fs_hz=250.0, subject_id="own/s1"):
        signal_mv = np.atleast_2d(np.asarray(signal_mv, dtype=np.float32))
        samples, symbols, notes = zip(*marks, strict=True) if marks else ((), (), ())
        return Record(
            record_id=subject_id,
            subject_id=subject_id,
            signal_mv=signal_mv,
            fs_hz=fs_hz,
            lead_names=tuple(f"lead{i}" for i in range(len(signal_mv))),
            annotations=Annotations(
                sample=np.array(samples, dtype=np.int64), symbol=symbols, note=notes
            ),
            database="own",
        )

    return make

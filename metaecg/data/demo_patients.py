"""Generate one patient's ECG: sinus rhythm, ectopic beats, tachycardia, fibrillation, noise.

Beats are sums of Gaussians around the R peak [1]_. Patients differ in shape, polarity, rate and
noise, and in what is normal for them: one patient's conducted beats are as wide as another
patient's ventricular tachycardia. No recording of a person went into this.

References
----------
.. [1] P. E. McSharry et al., "A dynamical model for generating synthetic electrocardiogram
   signals", IEEE Trans. Biomed. Eng. 50(3):289-294, 2003.
"""

from dataclasses import dataclass

import numpy as np
from scipy import signal

from metaecg.seeding import numpy_generator

FS_HZ = 250.0
LEAD = "ECG"
FEW_VA_S = 8.0
"""Seconds of arrhythmia in the patient that has too little: four two-second windows at most."""
MIN_DURATION_S = 180.0
"""A shorter recording has no room for the episodes that a few-shot task needs."""

_EDGE_S = 0.2  # fading in and out of waves without beats
_LEAST_GAP_S = 3.0  # between two episodes


@dataclass(frozen=True, kw_only=True)
class Role:
    """What kind of patient this is; the seed draws the rest."""

    va: tuple[str, ...] = ()
    """Kinds of ventricular arrhythmia, episode by episode in turn: VT, VFL, VF. Empty: none."""
    background: str = "sinus"
    """``sinus``, ``tachycardia`` (sinus, up to 150 a minute) or ``afib``."""
    is_wide: bool = False
    """Bundle-branch block: conducted beats are wide."""
    is_slow_vt: bool = False
    """VT of 115 to 140 a minute, shaped like conduction with bundle-branch block."""
    is_restless: bool = False
    """Movement artefacts of 2-6 Hz over the beats, and more muscle noise."""
    has_few_va: bool = False
    """One short episode only: too few windows for a task."""


CAST = (
    Role(va=("VT",)),
    Role(va=("VT",), is_slow_vt=True),
    Role(va=("VF",)),
    Role(va=("VT",), background="tachycardia", is_restless=True),
    Role(va=("VT", "VF"), is_wide=True),
    Role(background="tachycardia", is_wide=True),
    Role(va=("VFL", "VT"), is_restless=True),
    Role(va=("VT",), is_slow_vt=True, background="tachycardia"),
    Role(va=("VT",), has_few_va=True),
    Role(va=("VF", "VFL"), background="afib"),
    Role(background="afib"),
    Role(va=("VT", "VT", "VF"), is_restless=True),
    Role(va=("VF",), is_restless=True),
    Role(va=("VT",), is_slow_vt=True, is_wide=True),
    Role(va=("VFL",), background="tachycardia", is_wide=True),
    Role(background="sinus", is_wide=True, is_restless=True),
)
"""Sixteen roles, given out in turn: twelve patients fit for a task, three without arrhythmia, one
with too little."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of one rhythm, seconds, half open; `rhythm` is the mark without its bracket."""

    rhythm: str
    start_s: float
    stop_s: float


@dataclass(frozen=True, kw_only=True)
class GeneratedPatient:
    """One generated recording and its annotations."""

    role: Role
    signal_mv: np.ndarray
    """Shape ``(n_samples,)``, millivolts, at `FS_HZ`."""
    segments: tuple[Segment, ...]
    """The rhythms, in time order, without holes."""
    beats: tuple[tuple[int, str], ...]
    """(sample, symbol) of every beat: N, L (bundle-branch block) or V; none in VF and VFL."""


def generate_patient(index: int, *, duration_s: float, seed: int) -> GeneratedPatient:
    """Generate patient `index`; the others and their number change nothing in it."""
    role = CAST[index % len(CAST)]
    rng = numpy_generator(seed, "demo", index)
    segments = _plan_segments(role, duration_s, rng)
    body = _Body(role, rng)
    signal_mv = np.zeros(round(duration_s * FS_HZ))
    beats: list[tuple[int, str]] = []
    for segment in segments:
        wave, found = body.play(segment)
        start = round(segment.start_s * FS_HZ)
        first = max(0, start - body.pad)
        stop = min(len(signal_mv), start - body.pad + len(wave))
        signal_mv[first:stop] += wave[first - start + body.pad : stop - start + body.pad]
        beats += [(start + sample, symbol) for sample, symbol in found]
    signal_mv += _noise(len(signal_mv), role, rng)
    return GeneratedPatient(
        role=role,
        signal_mv=np.clip(signal_mv, -5.0, 5.0),
        segments=tuple(segments),
        beats=tuple(beats),
    )


def _plan_segments(role: Role, duration_s: float, rng: np.random.Generator) -> list[Segment]:
    """Lay the episodes out so that both halves of the recording hold enough of them."""
    background = "AFIB" if role.background == "afib" else "N"
    first = [("NOISE", rng.uniform(4.0, 7.0))] if rng.random() < 0.5 else []
    second = [("NOISE", rng.uniform(4.0, 7.0))] if not first else []
    if role.has_few_va:
        second.append((role.va[0], FEW_VA_S))
    elif role.va:
        kinds = list(role.va) * 5
        lengths = _split(rng.uniform(28.0, 34.0), 2, rng)
        first += list(zip(kinds, lengths, strict=False))
        lengths = _split(rng.uniform(26.0, 38.0), 3, rng)
        second += list(zip(kinds[2:], lengths, strict=False))
    # 28 s of arrhythmia before 0.48 of the time hold ten two-second windows whatever the grid.
    placed = _place(first, 0.16 * duration_s, 0.48 * duration_s, rng)
    placed += _place(second, 0.52 * duration_s, 0.96 * duration_s, rng)
    segments, now = [], 0.0
    for episode in placed:
        segments.append(Segment(rhythm=background, start_s=now, stop_s=episode.start_s))
        segments.append(episode)
        now = episode.stop_s
    return [*segments, Segment(rhythm=background, start_s=now, stop_s=duration_s)]


def _split(total_s: float, n_parts: int, rng: np.random.Generator) -> np.ndarray:
    """Split `total_s` into parts of at least 5 s."""
    return 5.0 + (total_s - 5.0 * n_parts) * rng.dirichlet(np.full(n_parts, 3.0))


def _place(
    episodes: list[tuple[str, float]], start_s: float, stop_s: float, rng: np.random.Generator
) -> list[Segment]:
    """Put the episodes into the span in random order, with background between them."""
    free_s = stop_s - start_s - sum(length for _, length in episodes)
    gaps = rng.dirichlet(np.full(len(episodes) + 1, 2.0))
    gaps = _LEAST_GAP_S + gaps * (free_s - _LEAST_GAP_S * (len(episodes) + 1))
    placed, now = [], start_s
    for gap, which in zip(gaps, rng.permutation(len(episodes)), strict=False):
        rhythm, length = episodes[which]
        placed.append(Segment(rhythm=rhythm, start_s=now + gap, stop_s=now + gap + length))
        now = placed[-1].stop_s
    return placed


class _Body:
    """A patient's own shapes and rates, drawn once; `play` turns a segment into a signal."""

    pad = round(0.5 * FS_HZ)
    """Samples by which a beat's waves may reach over the ends of its segment."""

    def __init__(self, role: Role, rng: np.random.Generator) -> None:
        self.role = role
        self.rng = rng
        self.gain = rng.uniform(0.6, 1.5)
        self.sign = -1.0 if rng.random() < 0.3 else 1.0
        self.normal = _wide_beat(rng) if role.is_wide else _narrow_beat(rng)
        self.ectopic = _ventricular_beat(rng, self.sign)
        self.vt = _wide_beat(rng)[1:] if role.is_slow_vt else _ventricular_beat(rng, self.sign)
        self.rate_hz = rng.uniform(*((95, 125) if role.background == "tachycardia" else (55, 85)))
        self.rate_hz /= 60.0
        self.swing = rng.uniform(0.05, 0.2)
        self.breath_hz = rng.uniform(0.18, 0.32)
        self.ectopic_share = rng.choice([0.01, 0.04, 0.12])
        self.vt_rate_hz = rng.uniform(*((115, 140) if role.is_slow_vt else (150, 220))) / 60.0
        self.vf_hz = rng.uniform(3.5, 6.5)
        self.vf_mv = rng.uniform(0.15, 0.7)
        self.flutter_hz = rng.uniform(3.3, 5.0)

    def play(self, segment: Segment) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """Return the segment's wave, `pad` samples longer at both ends, and its beats."""
        n = round(segment.stop_s * FS_HZ) - round(segment.start_s * FS_HZ)
        if segment.rhythm == "VF":
            return self._faded(self._fibrillation(n)), []
        if segment.rhythm == "VFL":
            return self._faded(self._flutter(n)), []
        if segment.rhythm == "NOISE":
            return self._faded(_band_noise(n, 0.5, 12.0, self.rng) * 1.5), []
        if segment.rhythm == "VT":
            return self._tachycardia(n)
        return self._background(n, segment)

    def _background(self, n: int, segment: Segment) -> tuple[np.ndarray, list[tuple[int, str]]]:
        is_afib = self.role.background == "afib"
        times, ectopic = self._background_times(n / FS_HZ, segment.start_s)
        conducted = self.normal[1:] if is_afib else self.normal  # no P wave in fibrillating atria
        wave = self._beats(times[~ectopic], conducted, n, spread=0.05)
        wave += self._beats(times[ectopic], self.ectopic, n, spread=0.08)
        if is_afib:
            wave[self.pad : self.pad + n] += 0.06 * self.gain * _band_noise(n, 4.0, 8.0, self.rng)
        own = "L" if self.role.is_wide else "N"
        samples = np.round(times * FS_HZ).astype(int)
        return wave, [(int(s), "V" if v else own) for s, v in zip(samples, ectopic, strict=True)]

    def _background_times(self, length_s: float, start_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the times of the beats within the segment, and which of them are ectopic."""
        is_afib = self.role.background == "afib"
        times, ectopic, now, pause = [], [], 0.1, 1.0
        while now < length_s - 0.05:
            drift = 1.0 + self.swing * np.sin((start_s + now) / 40.0)
            breath = 1.0 + 0.03 * np.sin(2 * np.pi * self.breath_hz * (start_s + now))
            interval = breath * (1.0 + 0.015 * self.rng.standard_normal())
            if is_afib:
                interval = self.rng.gamma(18.0, 1.0 / 18.0)
            interval_s = max(interval / (self.rate_hz * drift), 0.34)
            is_early = bool(times) and pause == 1.0 and self.rng.random() < self.ectopic_share
            times.append(now)
            ectopic.append(is_early)
            # An ectopic beat is followed by a pause; before it, the interval is cut short.
            pause = self.rng.uniform(1.2, 1.4) if is_early else 1.0
            now += interval_s * (pause if is_early else 1.0)
        times, ectopic = np.array(times), np.array(ectopic, dtype=bool)
        before = np.flatnonzero(ectopic)
        times[before] -= 0.3 * (times[before] - times[before - 1])
        return times, ectopic

    def _tachycardia(self, n: int) -> tuple[np.ndarray, list[tuple[int, str]]]:
        rate_hz = self.vt_rate_hz * self.rng.uniform(0.93, 1.07)
        n_beats = max(1, int(n / FS_HZ * rate_hz))
        steps = (1.0 + 0.02 * self.rng.standard_normal(n_beats)) / rate_hz
        times = 0.1 + np.cumsum(steps) - steps[0]
        times = times[times < n / FS_HZ - 0.05]
        wave = self._beats(times, self.vt, n, spread=0.08)
        return wave, [(int(sample), "V") for sample in np.round(times * FS_HZ)]

    def _fibrillation(self, n: int) -> np.ndarray:
        """A drifting narrow-band oscillation whose amplitude waxes and wanes."""
        wander = _band_noise(n, 0.05, 0.8, self.rng)
        frequency = np.clip(self.vf_hz + 0.7 * wander, 3.0, 7.0)
        phase = 2 * np.pi * np.cumsum(frequency) / FS_HZ
        swell = np.clip(1.0 + 0.45 * _band_noise(n, 0.1, 1.2, self.rng), 0.2, 2.0)
        rough = 0.3 * _band_noise(n, 2.5, 9.0, self.rng)
        return self.vf_mv * swell * (np.sin(phase) + rough)

    def _flutter(self, n: int) -> np.ndarray:
        """A nearly regular, nearly sinusoidal oscillation."""
        frequency = self.flutter_hz * (1.0 + 0.02 * _band_noise(n, 0.05, 0.5, self.rng))
        phase = 2 * np.pi * np.cumsum(frequency) / FS_HZ
        swell = 1.0 + 0.1 * _band_noise(n, 0.1, 0.8, self.rng)
        return 0.9 * self.gain * swell * (np.sin(phase) + 0.2 * np.sin(2 * phase + 1.0))

    def _faded(self, wave: np.ndarray) -> np.ndarray:
        ramp = np.minimum(1.0, np.arange(len(wave)) / (_EDGE_S * FS_HZ))
        return np.pad(wave * ramp * ramp[::-1], self.pad)

    def _beats(self, times_s: np.ndarray, shape: np.ndarray, n: int, *, spread: float):
        """Add up the beats at `times_s`; T waves move with the square root of the interval."""
        wave = np.zeros(n + 2 * self.pad)
        if not len(times_s):
            return wave
        sizes = self.gain * self.sign * (1.0 + spread * self.rng.standard_normal(len(times_s)))
        centres = np.round(times_s * FS_HZ).astype(int) + self.pad
        offsets = np.arange(-self.pad, self.pad)
        interval_s = np.median(np.diff(times_s)) if len(times_s) > 1 else 0.8
        stretch = np.clip(np.sqrt(interval_s / 0.8), 0.6, 1.1)
        beat = np.zeros(len(offsets))
        for height, centre_s, width_s in shape:
            middle = centre_s * stretch if centre_s > 0.1 else centre_s
            beat += height * np.exp(-0.5 * ((offsets / FS_HZ - middle) / width_s) ** 2)
        index = centres[:, None] + offsets  # (n_beats, n_window)
        inside = (index >= 0) & (index < len(wave))
        np.add.at(wave, index[inside], (sizes[:, None] * beat)[inside])
        return wave


def _vary(waves: list[tuple[float, float, float]], rng: np.random.Generator) -> np.ndarray:
    """Return the waves (height mV, centre s, width s) with a patient's own heights and widths."""
    shape = np.array(waves)
    shape[:, 0] *= rng.uniform(0.6, 1.4, len(shape))
    shape[:, 2] *= rng.uniform(0.85, 1.2, len(shape))
    return shape


def _narrow_beat(rng: np.random.Generator) -> np.ndarray:
    """P, Q, R, S and T."""
    q, s = -rng.uniform(0.02, 0.25), -rng.uniform(0.05, 0.6)
    t = rng.uniform(0.12, 0.4) * (-1.0 if rng.random() < 0.2 else 1.0)
    waves = [
        (0.12, -0.17, 0.022),
        (q, -0.028, 0.009),
        (1.1, 0.0, 0.011),
        (s, 0.03, 0.012),
        (t, 0.29, 0.05),
    ]
    return _vary(waves, rng)


def _wide_beat(rng: np.random.Generator) -> np.ndarray:
    """P, a notched wide QRS and a T wave against it: bundle-branch block."""
    waves = [
        (0.11, -0.19, 0.022),
        (0.75, -0.02, 0.022),
        (0.8, 0.045, 0.026),
        (-0.35, 0.30, 0.06),
    ]
    return _vary(waves, rng)


def _ventricular_beat(rng: np.random.Generator, sign: float) -> np.ndarray:
    """A wide beat without P, often against the direction of the conducted ones."""
    direction = -1.0 if rng.random() < 0.6 else 1.0
    width_s = rng.uniform(0.035, 0.055)
    waves = [
        (0.3 * rng.uniform(-1.0, 1.0), -0.07, 0.02),
        (1.3, 0.0, width_s),
        (-rng.uniform(0.3, 0.8), 0.2, 0.06),
    ]
    return _vary(waves, rng) * [[direction, 1.0, 1.0]]


def _band_noise(n: int, low_hz: float, high_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Return Gaussian noise of standard deviation 1 within a band, shape ``(n,)``."""
    n_long = n + round(4.0 * FS_HZ)  # short segments hold too few cycles of a low band
    frequency = np.fft.rfftfreq(n_long, 1 / FS_HZ)
    inside = (frequency >= low_hz) & (frequency <= high_hz)
    spectrum = inside * (
        rng.standard_normal(len(frequency)) + 1j * rng.standard_normal(len(frequency))
    )
    noise = np.fft.irfft(spectrum, n_long)
    return noise[:n] / noise.std()


def _noise(n: int, role: Role, rng: np.random.Generator) -> np.ndarray:
    """Return wander, mains, muscle noise and, in the restless, movement artefacts."""
    time_s = np.arange(n) / FS_HZ
    mains_hz = rng.choice([50.0, 60.0])
    noise = rng.uniform(0.05, 0.2) * _band_noise(n, 0.05, 0.4, rng)
    noise += rng.uniform(0.0, 0.02) * np.sin(2 * np.pi * mains_hz * time_s)
    level = rng.uniform(0.03, 0.06) if role.is_restless else rng.uniform(0.005, 0.025)
    noise += (
        level
        * np.clip(1.0 + _band_noise(n, 0.02, 0.3, rng), 0.2, 3.0)
        * (_band_noise(n, 20.0, 100.0, rng))
    )
    n_bursts = round(n / FS_HZ / 15.0) if role.is_restless else round(n / FS_HZ / 100.0)
    for start in rng.integers(0, n, n_bursts):
        length = min(round(rng.uniform(3.0, 8.0) * FS_HZ), n - start)
        burst = signal.windows.tukey(length, 0.4) * _band_noise(length, 2.0, 6.0, rng)
        noise[start : start + length] += rng.uniform(0.15, 0.7) * burst
    return noise

"""Random changes to training windows that leave the rhythm what it is."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metaecg.checks import check_positive
from metaecg.errors import DataError

if TYPE_CHECKING:
    from torch import Generator, Tensor

WANDER_HZ = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Frequencies of the baseline wander. Breathing and moving electrodes wander at 0.05 to 0.7 Hz; the
band-pass of `metaecg.data.preprocessing` takes 44 dB off at 0.05 Hz, 13 dB at 0.3 Hz, 2 dB at 0.7 Hz:
what is left of it lies here."""
MAX_COLOUR = 2.0
"""The noise's power falls with f to the power of 0 (muscles) to 2 (an electrode that moves)."""
MAX_TIME_WARP = 1.0
"""From there on more than half of a window would be mirrored."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Make a new patient and a new recording of every window, at random.

    All zero, the default, is off: the windows that come in go out. The changes are made in the
    order time warp, baseline and noise, gain, polarity. After the first three every lead of every
    window gets back the mean and the spread (standard deviation) that it had: windows that were
    normalised where they enter the network stay so, and a flat lead stays flat.

    Parameters
    ----------
    gain
        Amplitude times a factor between ``1 / (1 + gain)`` and ``1 + gain``, log-uniform, the same for
        all leads. A network whose windows are normalised meets that in use as well: an artefact in
        the window takes the spread, and the rhythm beside it comes out smaller.
    polarity
        Probability that all leads are turned upside down.
    baseline
        Largest wander, as a part of the lead's spread: sines at `WANDER_HZ` with
        Gaussian amplitudes and random phases, whose root mean square is uniform between 0 and `baseline` times the spread.
    noise
        Largest noise, in the same sense: Gaussian in `band_hz`, its power falling with the frequency to
        a power that is uniform between 0 and 2, as from muscles to a moving electrode [1]_.
    time_warp
        Rate times a factor between ``1 / (1 + time_warp)`` and ``1 + time_warp``, log-uniform, around the
        window's centre by linear interpolation; at most 1. A higher rate needs samples from beyond the
        window: they are the window's own, mirrored at its edges, ``time_warp / (1 + time_warp)`` of it
        at most. A rate decides between a fast rhythm and VT: keep it small.
    probability
        Probability that a window is changed at all; one that isn't comes out bit for bit.
    band_hz
        What the band-pass leaves, in hertz. The mains (50 and 60 Hz) are no part of it.

    Raises
    ------
    ValueError
        A number is out of its range.

    Notes
    -----
    Noise is a part of the window's spread and not in millivolts, since a network is trained on
    windows that are normalised already; for the same reason nothing here is done before the filter.

    References
    ----------
    .. [1] G. B. Moody, W. K. Muldrow and R. G. Mark, "A noise stress test for arrhythmia detectors",
       Computers in Cardiology 11:381-384, 1984: baseline wander, muscle noise, electrode motion.

    Examples
    --------
    >>> import torch
    >>> windows = torch.randn(4, 1, 400)
    >>> augment = Augmentation(noise=0.2, time_warp=0.1)
    >>> changed = augment(windows, fs_hz=200.0, generator=torch.Generator().manual_seed(0))
    >>> changed.shape, torch.allclose(changed.std(-1), windows.std(-1))
    (torch.Size([4, 1, 400]), True)
    """

    gain: float = 0.0
    polarity: float = 0.0
    baseline: float = 0.0
    noise: float = 0.0
    time_warp: float = 0.0
    probability: float = 1.0
    band_hz: tuple[float, float] = (0.5, 40.0)

    def __post_init__(self) -> None:
        highest = {"gain": math.inf, "baseline": math.inf, "noise": math.inf}
        highest |= {"polarity": 1.0, "probability": 1.0, "time_warp": MAX_TIME_WARP}
        for name, limit in highest.items():
            value = getattr(self, name)
            if not (0 <= value <= limit and math.isfinite(value)):
                expected = f"between 0 and {limit:g}" if limit < math.inf else "of at least 0"
                raise ValueError(f"{name} is {value!r}; a finite number {expected} was expected.")
        if not 0 < self.band_hz[0] < self.band_hz[1]:
            raise ValueError(
                f"band_hz is {self.band_hz}; a lower and a higher frequency above 0 were expected."
            )

    @property
    def is_off(self) -> bool:
        """Whether no window is ever changed."""
        parts = (self.gain, self.polarity, self.baseline, self.noise, self.time_warp)
        return not (self.probability and any(parts))

    def __call__(
        self,
        windows: "Tensor",
        *,
        fs_hz: float,
        generator: "Generator",
        patients: "Tensor | None" = None,
    ) -> "Tensor":
        """Return changed windows; those given stay as they are.

        Parameters
        ----------
        windows
            Shape ``(n_windows, n_leads, n_samples)``, floating point, normalised or millivolts.
        fs_hz
            Their sampling rate, hertz.
        generator
            Everything random comes from it: same windows and state, same result.
        patients
            Shape ``(n_windows,)``, integers from 0: windows with the same number are of one patient and
            share rate, gain, polarity, and whether they are changed. Baseline and noise are drawn for
            each window and lead. None: every window is a patient of its own.

        Returns
        -------
        torch.Tensor
            Same shape and type, on the same device.

        Raises
        ------
        DataError
            `windows` or `patients` has another shape.
        ValueError
            `fs_hz` is not above 0, or so short a window holds no frequency of `band_hz`.
        """
        import torch

        check_positive("fs_hz", fs_hz)
        _check_shapes(windows, patients)
        if self.is_off or not len(windows):
            return windows
        draw = _Draw(windows, patients, generator)
        changed = windows
        if self.time_warp or self.baseline or self.noise:
            changed = self._other_shape(windows, draw, fs_hz)
        if self.gain:
            changed = changed * draw.factor(self.gain)
        if self.polarity:
            changed = changed * draw.sign(self.polarity)
        if self.probability < 1:
            changed = torch.where(draw.chance(self.probability), changed, windows)
        return changed

    def _other_shape(self, windows: "Tensor", draw: "_Draw", fs_hz: float) -> "Tensor":
        """Return the windows warped and with noise, mean and spread as before."""
        mean, spread = _moments(windows)
        changed = windows
        if self.time_warp:
            changed = _at_rate(changed, draw.factor(self.time_warp))
        if self.baseline:
            size = draw.each_window() * self.baseline * spread
            changed = changed + size * _wander(draw, fs_hz)
        if self.noise:
            size = draw.each_window() * self.noise * spread
            changed = changed + size * _noise(draw, fs_hz, self.band_hz)
        return _unit(changed) * spread + mean


def require_generator(augment: Augmentation | None, generator: "Generator | None") -> None:
    """Raise ValueError if there is an augmentation and nothing to draw it from."""
    if augment and generator is None:
        raise ValueError(
            "augment is given and augment_generator is None; pass a torch.Generator, so that the "
            "same seed gives the same result."
        )


class _Draw:
    """Random numbers for a batch of windows, by patient or by window."""

    def __init__(self, windows: "Tensor", patients: "Tensor | None", generator) -> None:
        self.windows, self.generator = windows, generator
        self.patients = None if patients is None else patients.to(generator.device)
        self.n_patients = len(windows) if patients is None else int(patients.max()) + 1

    def uniform(self, *shape: int) -> "Tensor":
        import torch

        drawn = torch.rand(shape, generator=self.generator, device=self.generator.device)
        return drawn.to(self.windows)

    def normal(self, *shape: int) -> "Tensor":
        import torch

        drawn = torch.randn(shape, generator=self.generator, device=self.generator.device)
        return drawn.to(self.windows)

    def each_window(self) -> "Tensor":
        """Return uniform numbers, shape (n_windows, 1, 1)."""
        return self.uniform(len(self.windows), 1, 1)

    def each_patient(self) -> "Tensor":
        """Return uniform numbers, shape (n_windows, 1, 1), one per patient."""
        drawn = self.uniform(self.n_patients, 1, 1)
        return drawn if self.patients is None else drawn[self.patients.to(drawn.device)]

    def chance(self, probability: float) -> "Tensor":
        """Return True with `probability`, for each patient."""
        return self.each_patient() < probability

    def sign(self, probability: float) -> "Tensor":
        """Return -1 with `probability`, else 1, for each patient."""
        return 1 - 2 * self.chance(probability).to(self.windows)

    def factor(self, most: float) -> "Tensor":
        """Return factors between 1 / (1 + most) and 1 + most, log-uniform, for each patient."""
        return ((2 * self.each_patient() - 1) * math.log1p(most)).exp()


def _at_rate(windows: "Tensor", factor: "Tensor") -> "Tensor":
    """Return the windows played `factor` times as fast around their centre, mirrored at the edges."""
    import torch
    from torch.nn.functional import grid_sample

    n_windows, _, n_samples = windows.shape
    # grid_sample wants the places between -1 and 1, as (x, y) of an image of height 1.
    places = windows.new_zeros(n_windows, 1, n_samples, 2)
    line = torch.linspace(-1, 1, n_samples, device=windows.device, dtype=windows.dtype)
    places[..., 0] = line * factor
    image = windows[:, :, None]
    return grid_sample(image, places, padding_mode="reflection", align_corners=True)[:, :, 0]


def _wander(draw: _Draw, fs_hz: float) -> "Tensor":
    """Return slow waves of root mean square 1, shape (n_windows, n_leads, n_samples)."""
    import torch

    n_windows, n_leads, n_samples = draw.windows.shape
    turns = torch.outer(torch.tensor(WANDER_HZ), torch.arange(n_samples) / fs_hz)
    waves = torch.cat([torch.sin(2 * math.pi * turns), torch.cos(2 * math.pi * turns)])
    return _unit(draw.normal(n_windows, n_leads, len(waves)) @ waves.to(draw.windows))


def _noise(draw: _Draw, fs_hz: float, band_hz: tuple[float, float]) -> "Tensor":
    """Return coloured noise of root mean square 1, shape (n_windows, n_leads, n_samples)."""
    import torch

    n_windows, n_leads, n_samples = draw.windows.shape
    first = math.ceil(band_hz[0] * n_samples / fs_hz)
    last = min(math.floor(band_hz[1] * n_samples / fs_hz), (n_samples - 1) // 2)
    if last < first:
        raise ValueError(
            f"a window of {n_samples} samples at {fs_hz:g} Hz holds no frequency between "
            f"{band_hz[0]:g} and {band_hz[1]:g} Hz; give it longer windows, or leave the noise out."
        )
    place = torch.arange(first, last + 1, device=draw.windows.device, dtype=draw.windows.dtype)
    amplitude = place ** (-MAX_COLOUR / 2 * draw.each_window())  # (n_windows, 1, n_frequencies)
    parts = draw.normal(n_windows, n_leads, len(place), 2) * amplitude[..., None]
    spectrum = torch.nn.functional.pad(torch.view_as_complex(parts), (first, 0))
    return _unit(torch.fft.irfft(spectrum, n=n_samples))


def _moments(windows: "Tensor") -> "tuple[Tensor, Tensor]":
    """Return mean and spread of every lead of every window, shapes (n_windows, n_leads, 1)."""
    import torch

    mean = windows.mean(-1, keepdim=True)
    length = torch.linalg.vector_norm(windows - mean, dim=-1, keepdim=True)
    return mean, length / math.sqrt(windows.shape[-1])  # a tenth of the time of windows.std


def _unit(windows: "Tensor") -> "Tensor":
    """Return the windows with mean 0 and spread 1; a flat lead stays flat."""
    mean, spread = _moments(windows)
    return (windows - mean) / spread.clamp_min(_TINY)


_TINY = 1e-12
"""Below any spread of an ECG, in millivolts too."""


def _check_shapes(windows: "Tensor", patients: "Tensor | None") -> None:
    if windows.ndim != 3 or not windows.is_floating_point():
        raise DataError(
            f"windows are {windows.dtype} of shape {tuple(windows.shape)}; expected floating-point "
            "numbers of shape (n_windows, n_leads, n_samples)."
        )
    if patients is not None and patients.shape != windows.shape[:1]:
        raise DataError(
            f"patients has shape {tuple(patients.shape)}; expected one number for each of "
            f"{len(windows)} windows."
        )

"""CutMix for windows: put a box of one into another, and mix their labels by its area."""

import numpy as np
import torch
from torch import Tensor

from metaecg.checks import check_positive


def cutmix(
    x: Tensor, y: Tensor, *, rng: np.random.Generator, beta: float = 0.75
) -> tuple[Tensor, Tensor]:
    """Put a box of leads and time of one window into another, and mix their labels by its area.

    One box for the batch: with the share ``s`` to be kept drawn from Beta(`beta`, `beta`), its
    sides are ``sqrt(1 - s)`` of the leads and of the time, its centre lies anywhere, and what
    leaves the window is cut off. Labels are mixed by the area that is left. A window with one lead
    loses ``1 - s`` of its time.

    Parameters
    ----------
    x
        Shape ``(n_windows, n_leads, n_samples)``.
    y
        Shape ``(n_windows, n_classes)``, float: 0 and 1, or probabilities.
    rng
        Draws the share, the box and the partners, a permutation of the windows.
    beta
        Both parameters of the beta distribution, above 0.

    Returns
    -------
    x, y
        New tensors of the same shapes.

    References
    ----------
    .. [1] S. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with
       Localizable Features", ICCV 2019.
    """
    check_positive("cutmix_beta", beta)
    n_leads, n_samples = x.shape[1:]
    cut = 1.0 - rng.beta(beta, beta)
    side = cut if n_leads == 1 else cut**0.5
    rows = slice(0, 1) if n_leads == 1 else _side(n_leads, side, rng)
    columns = _side(n_samples, side, rng)
    partner = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    mixed = x.clone()
    mixed[:, rows, columns] = x[partner, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start) / (n_leads * n_samples)
    return mixed, torch.lerp(y, y[partner], area)


def _side(length: int, share: float, rng: np.random.Generator) -> slice:
    half, centre = length * share / 2, rng.uniform(0, length)
    return slice(max(0, round(centre - half)), min(length, round(centre + half)))

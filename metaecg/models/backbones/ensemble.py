"""Several compact networks as one: their logits averaged, one head over all of their features."""

from collections.abc import Sequence

import torch
from torch import nn

from metaecg.checks import check_positive
from metaecg.models.backbones.compact_cnn import CompactBody, CompactCNN


class CompactCNNEnsemble(nn.Module):
    """The mean of several `CompactCNN`'s logits, written with one head.

    Networks trained from other seeds err on other windows, so that their mean errs less. Train them
    one by one and `assemble` them; a patient's windows then move all of them together.

    Parameters
    ----------
    n_leads, n_samples, fs_hz, n_classes, width
        Of each member; see `CompactCNN`.
    n_members
        How many. Three of width 32 have 86,882 parameters at one lead and 200 Hz.

    Notes
    -----
    The features are divided by the number of members, and the head keeps the members' weights as
    they were. A step of AdamW, whose length knows no scale, so moves a weight as it would in a
    member; dividing the weights instead would make the same step `n_members` times as strong.

    Examples
    --------
    >>> members = [CompactCNN(n_leads=1, n_samples=400, fs_hz=200.0, n_classes=2) for _ in range(3)]
    >>> network = CompactCNNEnsemble.assemble(members)
    >>> x = torch.randn(8, 1, 400)
    >>> mean = torch.stack([member(x) for member in members]).mean(dim=0)
    >>> bool((network(x) - mean).abs().max() < 1e-6)
    True
    """

    supports_vmap = True

    def __init__(
        self,
        *,
        n_leads: int,
        n_samples: int,
        fs_hz: float,
        n_classes: int,
        width: int = 32,
        n_members: int = 3,
    ) -> None:
        super().__init__()
        if check_positive("n_members", n_members) != int(n_members):
            raise ValueError(f"n_members is {n_members!r}; a whole number was expected.")
        self.members = nn.ModuleList(
            CompactBody(n_leads=n_leads, n_samples=n_samples, fs_hz=fs_hz, width=width)
            for _ in range(n_members)
        )
        self.head = nn.Linear(n_members * 4 * width, n_classes)

    @classmethod
    def assemble(cls, members: Sequence[CompactCNN]) -> "CompactCNNEnsemble":
        """Return an ensemble whose logits are the mean of those of `members`; they are copied.

        It has the first member's device and type of numbers, in evaluation mode.

        Raises
        ------
        ValueError
            If there is no member, or two of them differ in leads, rate, window, width or classes.
        """
        signal = _same_of_all(members)
        ensemble = cls(**signal, n_members=len(members)).to(members[0].head.weight)
        for body, member in zip(ensemble.members, members, strict=True):
            own = {k: v for k, v in member.state_dict().items() if not k.startswith("head.")}
            body.load_state_dict(own)
        with torch.no_grad():
            ensemble.head.weight.copy_(torch.cat([m.head.weight for m in members], dim=1))
            ensemble.head.bias.copy_(torch.stack([m.head.bias for m in members]).mean(dim=0))
        return ensemble.eval()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the members' features side by side, ``(batch, n_members * 4 * width)``.

        Each is divided by the number of members. `x` has shape ``(batch, n_leads, n_samples)``.
        """
        # A loop, not one grouped convolution of all members: on a CPU that is slower as soon as
        # gradients are wanted, and no low-rank adapter fits on it.
        found = [member.features(x) for member in self.members]
        return torch.cat(found, dim=-1) / len(self.members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, n_classes)`` of windows ``(batch, n_leads, n_samples)``."""
        return self.head(self.features(x))


def _same_of_all(members: Sequence[CompactCNN]) -> dict[str, float]:
    """Return the arguments that every member was built with; a difference is a ValueError."""
    if not members:
        raise ValueError("members is empty; one compact CNN at least was expected.")
    found = [_arguments(member) for member in members]
    for place, other in enumerate(found):
        wrong = [name for name in other if other[name] != found[0][name]]
        if wrong:
            name = wrong[0]
            raise ValueError(
                f"members[{place}] has {name}={other[name]}, members[0] {found[0][name]}; the same "
                "was expected of all. Assemble networks that were trained on the same windows."
            )
    return found[0]


def _arguments(member: CompactCNN) -> dict[str, float]:
    signal = {name: getattr(member, name) for name in ("n_leads", "n_samples", "fs_hz", "width")}
    return {**signal, "n_classes": member.head.out_features}

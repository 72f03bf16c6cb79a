"""A patient's windows as they come, judged by that patient's detector and no other."""

from typing import TYPE_CHECKING

import numpy as np

from metaecg.adapt.adapters import adapter_digest
from metaecg.adapt.in_time import both_classes, logit_difference
from metaecg.adapt.methods import MOVES_STATISTICS
from metaecg.models.base_windows import base_logits
from metaecg.models.rhythm import RhythmChain, RhythmFilter

if TYPE_CHECKING:
    from metaecg.adapt.personalize import Personalizer


class PersonalStream:
    """One patient's windows as they come: each judged by itself and those before it.

    Made by `Personalizer.stream`. The network sees one window at a time, so that its logits may
    differ in the last digits from those of many windows at once. It stays with the detector as it
    was then: fitting the `Personalizer` again leaves an open stream as it is.
    """

    def __init__(self, personal: "Personalizer", state: dict | None = None) -> None:
        self._base, self._network = personal.fitted_base_, personal.network_
        has_statistics = personal.fitted_params_["method"] in MOVES_STATISTICS
        self._identity = {
            "base": self._base.fingerprint,
            "adapter": adapter_digest(self._network, with_statistics=has_statistics),
        }
        self._filter = RhythmFilter(self._base.rhythm, personal.chain_)
        if state is not None:
            self._go_on(state)

    def step(
        self, window: np.ndarray, time_s: float, *, record_id: str | None = None
    ) -> np.ndarray:
        """Return the class probabilities of the next window, shape ``(2,)``, float64.

        Parameters
        ----------
        window
            Shape ``(n_leads, n_samples)``, as one of `Personalizer.predict_proba`'s.
        time_s
            When it starts, seconds. A time that doesn't move on, or another recording, starts anew.
        record_id
            Which recording it is from, if there are several.
        """
        logits = base_logits(self._base, self._network, np.asarray(window)[None])
        difference = logit_difference(self._base, logits)[0]
        log_odds = self._filter.step(difference, time_s, record_id=record_id)
        return both_classes(self._base, np.array([log_odds]))[0]

    def to_dict(self) -> dict:
        """Return where the stream stands as JSON values, for `Personalizer.stream`.

        `base` is the base's fingerprint and `adapter` the SHA-256 (hex) of the patient's tensors.
        """
        return {**self._identity, "filter": self._filter.to_dict()}

    def _go_on(self, state: dict) -> None:
        if not isinstance(state, dict) or set(state) != {"base", "adapter", "filter"}:
            raise ValueError(f"the stream was given {state!r}; expected what to_dict returned.")
        found = RhythmFilter.from_dict(state["filter"])
        identity = {name: state[name] for name in self._identity}
        mine = (self._identity, self._filter.model, self._filter.chain)
        if (identity, found.model, found.chain) != mine:
            raise ValueError(
                f"the state belongs to a stream with {_named(identity, found.chain)}; this detector "
                f"has {_named(self._identity, self._filter.chain)}. Start a new stream, or load the "
                "detector that the state came from."
            )
        self._filter = found


def _named(identity: dict[str, str], chain: RhythmChain) -> str:
    return f"the base {identity['base']!r}, the adapter {identity['adapter']!r} and {chain}"

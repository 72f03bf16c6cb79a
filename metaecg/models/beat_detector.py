"""From the beats of a recording to what is ventricular among them: network and context together."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import expit

from metaecg.data.beat_input import ROWS, beat_forms, beat_inputs
from metaecg.data.beats import BeatSet
from metaecg.errors import CheckpointError
from metaecg.models.base_windows import CONTEXT, CUTTING, is_for_beats
from metaecg.models.beat_context import MODES, BeatContext
from metaecg.models.checkpoints import BaseModel

TWO_LEADS = "beat_context_two_leads"
"""Key of the `BeatContext` for beats of two leads; a base without it judges by the first one."""


def context_key(key: str, mode: str) -> str:
    """Return the key of a `BeatContext` that was learned for another mode than the base's own."""
    return f"{key}_{mode}"


class BeatDetector:
    """Finds V among the beats of whole recordings, each by those before it.

    Beats may have a second lead. Each is judged by the same network, and a beat is as likely V as the
    lead that speaks against it says: what is noise in one lead is seldom in the other. A base that
    was made for one lead alone looks at the first.

    Parameters
    ----------
    base
        A base for beats, such as ``load_base("veb-base")``.
    model
        What gives the logits: the base itself by default, or a patient's `Personalizer`.

    Raises
    ------
    CheckpointError
        `base` is not one for beats, or `model` belongs to another base.

    Examples
    --------
    >>> detector = BeatDetector(load_base("veb-base"))  # doctest: +SKIP
    >>> beats, _ = cut_beats(record, r_peaks="detected", **detector.cutting)  # doctest: +SKIP
    >>> detector.predict_proba(beats)  # doctest: +SKIP
    """

    def __init__(self, base: BaseModel, model=None) -> None:
        facts = base.training
        if base.n_leads != len(ROWS) or not is_for_beats(base):
            raise CheckpointError(
                f"the base takes {base.n_leads} rows and says nothing of how beats are cut; expected one "
                "for beats, such as veb-base."
            )
        self.base, self.model = base, base if model is None else model
        _check_belongs(self.model, base)
        stored = dict(facts.get(CONTEXT, {}))
        self.mode = stored.pop("mode", "causal")
        self.context = BeatContext.from_dict(stored) if stored else None
        self.two_leads = BeatContext.from_dict(facts[TWO_LEADS]) if TWO_LEADS in facts else None
        self._of_mode = {
            (key, mode): BeatContext.from_dict(facts[context_key(key, mode)])
            for key in (CONTEXT, TWO_LEADS)
            for mode in MODES
            if context_key(key, mode) in facts
        }

    def context_of(self, *, n_leads: int = 1, mode: str | None = None) -> BeatContext | None:
        """Return the context for beats of so many leads; ``mode=None``: as the base was made for.

        A base that learned none for a mode of its own uses the one that it has.
        """
        key, usual = (CONTEXT, self.context) if n_leads == 1 else (TWO_LEADS, self.two_leads)
        return self._of_mode.get((key, mode or self.mode), usual)

    @property
    def cutting(self) -> dict:
        """What `metaecg.data.beats.cut_beats` needs to cut beats for this base."""
        return {"preprocessing": self.base.preprocessing, **self.base.training[CUTTING]}

    def inputs(self, beats: BeatSet) -> tuple[np.ndarray, ...]:
        """Return the `beat_inputs` of every lead that is judged."""
        n_leads = min(beats.windows.shape[1], 1 if self.two_leads is None else 2)
        return tuple(beat_inputs(beats, lead=lead) for lead in range(n_leads))

    def log_odds(
        self,
        beats: BeatSet,
        *,
        inputs: np.ndarray | Sequence[np.ndarray] | None = None,
        known: Mapping[int, bool] | None = None,
        vote_weight: float = 0.0,
        mode: str | None = None,
    ) -> np.ndarray:
        """Return the log odds of V, above 0 where it is named; shape ``(n_beats,)``.

        Parameters
        ----------
        beats
            All beats of whole recordings, in the order of time.
        inputs
            What `inputs` gives, if it is there already; or the `beat_inputs` of one lead.
        known, vote_weight, mode
            As for `BeatContext.log_odds`; ``mode=None``: as the base was made for.
        """
        inputs = self.inputs(beats) if inputs is None else inputs
        inputs = (inputs,) if isinstance(inputs, np.ndarray) else tuple(inputs)
        logits = lead_logits(self.model, inputs, self.base.classes)
        context = self.context_of(n_leads=len(inputs), mode=mode)
        if context is None:
            return logits
        return context.log_odds(
            logits,
            beat_forms(inputs[0], beats),
            record_ids=beats.record_ids,
            known=known,
            vote_weight=vote_weight,
            mode=mode or self.mode,
        )

    def predict_proba(self, beats: BeatSet, **options) -> np.ndarray:
        """Return the probability of V, shape ``(n_beats,)``; from 0.5 on it is named."""
        return expit(self.log_odds(beats, **options))


def _check_belongs(model, base: BaseModel) -> None:
    """Refuse a detector on another base: its logits would meet a context learned for others."""
    own = getattr(model, "fitted_base_", None) or getattr(model, "base", model)
    fingerprint = getattr(own, "fingerprint", base.fingerprint)
    if fingerprint != base.fingerprint:
        raise CheckpointError(
            f"the model belongs to the base {fingerprint}; this base is {base.fingerprint}, and its "
            "context was learned for its own logits. Give the base that the model was fitted on."
        )


def lead_logits(model, inputs: Sequence[np.ndarray], classes: tuple[str, ...]) -> np.ndarray:
    """Return the lowest log odds of V among the leads' `inputs`, shape ``(n,)``."""
    return np.min([v_logits(model.logits(lead), classes) for lead in inputs], axis=0)


def v_logits(logits: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """Return the log odds of V against all other classes together, shape ``(n,)``."""
    from scipy.special import logsumexp

    v = classes.index("V")
    others = np.delete(logits, v, axis=1)
    return logits[:, v] - logsumexp(others, axis=1)

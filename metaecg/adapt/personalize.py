"""Ten labelled windows per class from a new patient in, that patient's own detector out."""

import os
import time
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from metaecg.adapt import adapters, fitting, in_time, support
from metaecg.adapt.arguments import check_arguments, from_json
from metaecg.adapt.h_tuning import HTuning
from metaecg.adapt.methods import MOVES_STATISTICS, merged, prepare_network, trained_parameters
from metaecg.adapt.personal_stream import PersonalStream
from metaecg.adapt.training import OnStep
from metaecg.errors import AdaptationError, CheckpointError
from metaecg.models.base_windows import base_logits, windows_for
from metaecg.models.inference import softmax
from metaecg.models.rhythm import RhythmChain
from metaecg.seeding import derive_seed

NAMELESS = "new patient"


class Personalizer(ClassifierMixin, BaseEstimator):
    """A classifier for one patient: a base model and the little that a few windows change in it.

    The base model is shared, never changed; `sklearn.base.clone` keeps sharing it.

    Parameters
    ----------
    base
        The `BaseModel` to start from.
    method
        What is trained, and how: ``"head"``, ``"full"``, ``"bias"``, ``"lora"`` or ``"h-tuning"``
        (`metaecg.adapt.methods`; the last one by the steps of `metaecg.adapt.h_tuning`).
    n_steps
        Steps of fine-tuning; 0 keeps the base as it is; ``None``: 30, for H-Tuning 200.
    lr
        Learning rate of AdamW, for H-Tuning the highest of its schedule; ``None``: that of
        `metaecg.adapt.arguments.LEARNING_RATES`, for H-Tuning 1e-3, or 2e-3 with more than 64
        windows in a step.
    weight_decay
        Decoupled weight decay of AdamW; ``None``: 1e-4, for H-Tuning 0.01.
    rank, alpha, target_modules
        LoRA and H-Tuning: inner width (``None``: 4 and 16), scale ``alpha / rank`` (``None``: 2
        and 1), names or patterns of the layers to adapt (``None``: all that can be).
    batch_size
        Windows per step; ``None``: all, for H-Tuning at most 128.
    micro_batch
        At most so many windows at once in fine-tuning; ``None``: all of the step. Less memory, and
        the same gradients but for rounding; for H-Tuning with batch norm see `MixOrder`.
    freeze
        Names of modules or parameters that aren't trained, with all inside them. H-Tuning moves
        the statistics of their batch norm all the same.
    h_tuning
        An `HTuning`, how H-Tuning mixes its gradients; ``None``: as published.
    dropout
        Whether the base's dropout layers are active while training; not with H-Tuning.
    prefine
        Pre-fine-tuning before fine-tuning: ``None``, ``"released"`` or ``"intended"``
        (`metaecg.adapt.prefine`).
    rhythm
        ``"none"`` judges every window by itself. With the base's rhythm model ``"causal"`` counts
        the windows before, ``"offline"`` also those after (`metaecg.models.rhythm`); how often the
        patient's rhythms begin and end comes from the times of the support.
    threshold
        For two classes: probability of the positive one (``"va"`` if there is one, else the
        second) from which `predict` names it; ``None``: that of the rhythm model, 0.5 without.
    random_state
        Whole number. The same number and windows give the same classifier.

    Attributes
    ----------
    classes_
        Class names, in the order of `predict_proba`'s columns.
    network_
        The patient's network, in eval mode.
    n_trainable_
        How many numbers were trained.
    adapter_bytes_
        Size of the patient's numbers, batch norm's statistics included where the method moves them.
    loss_curve_, prefine_curve_
        The loss before each step.
    fit_seconds_
        How long `fit` took.
    n_support_
        Windows per class that `fit` was given.
    adapted_layers_
        Names of the layers with a low-rank change.
    chain_
        The patient's `RhythmChain`; None with ``rhythm="none"``.
    fitted_params_, fitted_base_
        The constructor's arguments as `fit` used them, and the base; `set_params` changes neither.

    Examples
    --------
    >>> personal = Personalizer(base).fit(windows, labels)  # doctest: +SKIP
    >>> personal.predict_proba(later_windows)  # doctest: +SKIP
    """

    def __init__(
        self,
        base,
        *,
        method: str = "lora",
        n_steps: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        rank: int | None = None,
        alpha: float | None = None,
        target_modules: Sequence[str] | None = None,
        batch_size: int | None = None,
        micro_batch: int | None = None,
        freeze: Sequence[str] | None = None,
        h_tuning: HTuning | None = None,
        dropout: bool = False,
        prefine: str | None = None,
        rhythm: str = "none",
        threshold: float | None = None,
        random_state: int = 0,
    ) -> None:
        self.base = base
        self.method = method
        self.n_steps = n_steps
        self.lr = lr
        self.weight_decay = weight_decay
        self.rank = rank
        self.alpha = alpha
        self.target_modules = target_modules
        self.batch_size = batch_size
        self.micro_batch = micro_batch
        self.freeze = freeze
        self.h_tuning = h_tuning
        self.dropout = dropout
        self.prefine = prefine
        self.rhythm = rhythm
        self.threshold = threshold
        self.random_state = random_state

    @property
    def threshold(self) -> float:
        """The threshold in use: the one given, else that of the rhythm model, else 0.5.

        Once fitted, the rhythm is the one that `fit` used.
        """
        if self.given_threshold is not None:
            return self.given_threshold
        if not hasattr(self, "fitted_params_"):
            return in_time.default_threshold(self.rhythm, self.base)
        return in_time.default_threshold(self.fitted_params_["rhythm"], self.fitted_base_)

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        self.given_threshold = value

    def _given_params(self) -> dict:
        return {**self.get_params(deep=False), "threshold": self.given_threshold}

    def __sklearn_clone__(self) -> "Personalizer":
        return type(self)(**self._given_params())

    def fit(
        self,
        windows: np.ndarray,
        labels: Sequence,
        *,
        time_s: np.ndarray | None = None,
        on_step: OnStep | None = None,
        subject_id: str = NAMELESS,
    ) -> "Personalizer":
        """Adapt a copy of the base to the patient's labelled windows.

        Parameters
        ----------
        windows
            Shape ``(n_windows, n_leads, n_samples)``, millivolts, filtered and at the rate of
            ``base.preprocessing``. For a base for beats the rows of
            `metaecg.data.beat_input.beat_inputs`.
        labels
            Shape ``(n_windows,)``: class names, or indices into ``base.classes``.
        time_s
            Shape ``(n_windows,)``: when each window starts, seconds. Only a `rhythm` and
            ``prefine="intended"`` need it.
        on_step
            Called after each step of fine-tuning as ``on_step(done, total)``. What it raises ends
            the fit and leaves everything as it was: so a fit is watched, and cancelled.
        subject_id
            Who it is, for what is refused.

        Returns
        -------
        Personalizer
            Itself.

        Raises
        ------
        DataError
            If windows, labels or times can't be used.
        NotEnoughWindowsError
            If there is one class only, or too few of a class.
        AdaptationError
            If training leaves the finite numbers or the method fits no layer.
        ValueError
            If a constructor argument is out of range.
        """
        return self._fit(windows, labels, time_s, subject_id, on_step)

    def fit_record(
        self, record, marks: Sequence[tuple[float, float, str]], *, on_step: OnStep | None = None
    ) -> "Personalizer":
        """Adapt to the marked parts of a recording.

        Parameters
        ----------
        record
            A `metaecg.data.records.Record`.
        marks
            ``(start_s, stop_s, class name)``, seconds from the start of the recording.
        on_step
            As for `fit`.

        Returns
        -------
        Personalizer
            Itself.

        Raises
        ------
        DataError
            If the base judges beats; otherwise as `fit`.
        """
        found = support.marked_windows(self.base, record, marks)
        names = np.asarray(found.classes)[found.labels]
        return self._fit(found.windows, names, found.time_s, record.subject_id, on_step)

    def logits(self, windows: np.ndarray) -> np.ndarray:
        """Return the patient's network's logits, each window by itself; `windows` as in `fit`."""
        check_is_fitted(self, "network_")
        return base_logits(self.fitted_base_, self.network_, windows)

    def predict_proba(
        self,
        windows: np.ndarray,
        *,
        time_s: np.ndarray | None = None,
        record_ids: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the class probabilities, shape ``(n_windows, n_classes)``, float64.

        Parameters
        ----------
        windows
            As in `fit`; any number of them, also none. With a `rhythm` in the order of time.
        time_s
            With a `rhythm`: when each window starts, seconds, shape ``(n_windows,)``. Where time
            doesn't move on, the rhythm starts anew; windows that overlap are refused.
        record_ids
            With a `rhythm`: the recording of each window, shape ``(n_windows,)``; another one
            starts anew. ``None``: all are from one.
        """
        logits = self.logits(windows)
        rhythm = self.fitted_params_["rhythm"]
        if rhythm == "none":
            return softmax(logits)
        time_s = in_time.needed_times(time_s, rhythm=rhythm, n_windows=len(logits))
        return in_time.probabilities_in_time(
            self.fitted_base_, self.chain_, logits, time_s, record_ids=record_ids, rhythm=rhythm
        )

    def predict(
        self,
        windows: np.ndarray,
        *,
        time_s: np.ndarray | None = None,
        record_ids: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the class names, shape ``(n_windows,)``; see `threshold` and `predict_proba`."""
        probabilities = self.predict_proba(windows, time_s=time_s, record_ids=record_ids)
        return self.classes_[in_time.named(probabilities, self.classes_, self.threshold)]

    def stream(self, state: dict | None = None) -> PersonalStream:
        """Return what judges windows one by one as they come, by those before them alone.

        `state` is what `PersonalStream.to_dict` gave: the new stream goes on there. A detector that
        was fitted with ``rhythm="none"`` is a ValueError.
        """
        check_is_fitted(self, "network_")
        if self.chain_ is None:
            raise ValueError("rhythm is 'none'; a stream needs one. Fit with rhythm='causal'.")
        return PersonalStream(self, state)

    def merged_network(self) -> torch.nn.Module:
        """Return the patient's network as a plain network of the base's architecture, a copy."""
        check_is_fitted(self, "network_")
        return merged(self.network_)

    def save(self, folder: str | os.PathLike) -> None:
        """Write what was trained (no base weights) to `folder`; see `metaecg.adapt.adapters`."""
        check_is_fitted(self, "network_")
        tensors = adapters.adapter_tensors(
            self.network_, with_statistics=self.fitted_params_["method"] in MOVES_STATISTICS
        )
        adapters.write_adapter(folder, tensors, adapters.document_of(self))

    @classmethod
    def load(cls, folder: str | os.PathLike, base) -> "Personalizer":
        """Read what `save` wrote; the probabilities are bit for bit those of before.

        Raises
        ------
        CheckpointError
            If the adapter belongs to another base, is damaged or of another format version.
        """
        tensors, document = adapters.read_adapter(folder)
        return cls.from_document(tensors, document, base, name=f"the adapter in {folder}")

    @classmethod
    def from_document(
        cls, tensors: dict, document: dict, base, *, name: str = "the adapter"
    ) -> "Personalizer":
        """Return the fitted detector that an adapter's tensors and document describe.

        For adapters that are kept elsewhere than in a folder. `name` is what messages call it;
        anything that `base` can't be given is a CheckpointError.
        """
        if document["base_fingerprint"] != base.fingerprint:
            raise CheckpointError(
                f"{name} belongs to the base {document['base_fingerprint']}; this base is "
                f"{base.fingerprint}. Load the base it was fitted on, or fit again."
            )
        try:
            personal = cls(base, **from_json(document["params"]))
            check_arguments(personal.get_params(deep=False))
            network = personal._prepared(document.get("adapted_layers") or None)
            has_statistics = personal.method in MOVES_STATISTICS
            adapters.put_tensors(network, tensors, with_statistics=has_statistics)
            has_rhythm = personal.rhythm != "none"
            chain = RhythmChain.from_dict(document.get("rhythm_chain")) if has_rhythm else None
            personal._set_fitted(network, document["n_support"], chain)
            personal.loss_curve_ = list(document.get("loss_curve", []))
            personal.prefine_curve_ = list(document.get("prefine_curve", []))
            personal.fit_seconds_ = float(document.get("fit_seconds", 0.0))
        except (TypeError, ValueError, AdaptationError) as error:
            raise CheckpointError(
                f"{name} describes what this base can't be given: {error} Fit again."
            ) from error
        return personal

    def _fit(self, windows, labels, time_s, subject_id: str, on_step) -> "Personalizer":
        begin = time.perf_counter()
        check_arguments(self.get_params(deep=False))
        windows = windows_for(self.base, windows)
        index = support.label_index(labels, self.base.classes, n_windows=len(windows))
        n_each = support.windows_of_each(self.prefine)
        support.check_enough(index, self.base.classes, subject_id=subject_id, n_each=n_each)
        time_s = in_time.times_of_support(
            time_s, len(windows), rhythm=self.rhythm, prefine=self.prefine
        )

        has_rhythm = self.rhythm != "none"
        chain = in_time.chain_of_support(self.base, index, time_s) if has_rhythm else None
        network = self._prepared(self.target_modules)
        device = next(network.parameters()).device
        x = torch.from_numpy(self.base.preprocessing.normalize_windows(windows)).to(device)
        y = torch.from_numpy(index).to(device)
        arguments = self.get_params(deep=False)
        prefine_curve = fitting.prefine(network, x, y, time_s, arguments)
        self.loss_curve_ = fitting.tune(network, x, y, arguments, on_step)
        self.prefine_curve_ = prefine_curve
        self._set_fitted(network, support.class_counts(index, self.base.classes), chain)
        self.fit_seconds_ = time.perf_counter() - begin
        return self

    def _prepared(self, target_modules: Sequence[str] | None) -> torch.nn.Module:
        return prepare_network(
            self.base.new_network(),
            self.method,
            rank=None if self.rank is None else int(self.rank),
            alpha=self.alpha,
            target_modules=target_modules,
            freeze=tuple(self.freeze or ()),
            seed=derive_seed(self.random_state, "lora"),
        )

    def _set_fitted(
        self, network: torch.nn.Module, n_support: dict[str, int], chain: RhythmChain | None
    ) -> None:
        self.fitted_params_ = self._given_params()
        self.fitted_base_ = self.fitted_params_.pop("base")
        self.classes_ = np.asarray(self.base.classes)
        self.n_support_ = dict(n_support)
        self.chain_ = chain
        self.n_trainable_ = sum(p.numel() for p in trained_parameters(network).values())
        has_statistics = self.fitted_params_["method"] in MOVES_STATISTICS
        self.adapter_bytes_ = adapters.adapter_bytes(network, with_statistics=has_statistics)
        self.adapted_layers_ = adapters.adapted_layers(network)
        self.network_ = network.eval()

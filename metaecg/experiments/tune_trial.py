"""One trial of a study: choose, train on each inner fold, judge, report, and record."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from metaecg.errors import AdaptationError
from metaecg.experiments.tracking import make_tracker
from metaecg.experiments.tracking_facts import recipe_tags
from metaecg.experiments.tune_config import TuneConfig
from metaecg.experiments.tune_options import Plan
from metaecg.experiments.tune_recipe import Development, Fold, Score
from metaecg.experiments.tune_storage import StorageAwayError, worker_name
from metaecg.experiments.tune_study import COMMIT, LOST, REASON, WORKER
from metaecg.seeding import derive_seed

LOOKS = (0.125, 0.25, 0.5)
"""Shares of the first fold's budget at which a trial is looked at. Each look costs a personalization
of every subject, so that in the later folds only the end counts."""
EIGHTHS = 8
"""A report's step is how many eighths of a fold's budget the trial has had: 1, 2, 4, 8, 16, 24. It is
the same for all trials, whatever their batches."""
STARTUP_TRIALS = (4, 10)
"""At least and at most so many random trials before TPE, otherwise a quarter of the study."""
MEDIAN_AFTER = 4
"""Complete trials that the median pruner waits for."""
REDUCTION = 3
"""Hyperband lets one of so many trials pass."""


@dataclass(kw_only=True)
class Workplace:
    """What a worker has at hand for all its trials."""

    plan: Plan
    development: Development
    folds: Sequence[Fold]
    run_id: str | None
    """MLflow's id of the study's run, of which the trials' runs are children."""
    commit: str | None
    """Of the code that runs."""
    _worker: str = field(default_factory=worker_name)

    def objective(self, trial) -> float | tuple[float, ...]:
        """Return what a trial of optuna is worth; a failure leaves its reason with the trial."""
        from optuna import TrialPruned
        from optuna.exceptions import UpdateFinishedTrialError

        # The trial was declared dead, or its storage is away: nothing can be noted with it.
        unnotable = (UpdateFinishedTrialError, StorageAwayError)
        trial.set_user_attr(WORKER, self._worker)
        trial.set_user_attr(COMMIT, self.commit)
        with _recorded(self, trial) as record:
            try:
                return self._worth(trial, record)
            except (TrialPruned, *unnotable):
                raise
            except KeyboardInterrupt:
                with suppress(*unnotable):
                    trial.set_user_attr(LOST, True)
                    trial.set_user_attr(REASON, "interrupted")
                raise
            except Exception as error:  # a bad combination, no memory: the study goes on
                with suppress(*unnotable):
                    trial.set_user_attr(REASON, _in_words(error))
                raise

    def _worth(self, trial, record: "Record") -> float | tuple[float, ...]:
        plan = self.plan
        chosen: dict[str, Any] = {}
        for name, entry in plan.space.items():
            if plan.recipe.asks(name, chosen, plan.shared):
                chosen[name] = entry.ask(trial, name)
        record.params(chosen)
        config = plan.recipe.with_values(plan.shared, chosen)
        course = Course(trial, plan.config, record)
        scores: list[Score] = []
        for i, fold in enumerate(self.folds):
            shares = LOOKS if i == 0 and course.may_prune else ()
            scores += plan.recipe.evaluate(
                config,
                self.development,
                fold,
                seed=plan.config.seed,
                shares=shares,
                show=course.look if shares else None,
            )
            course.report(EIGHTHS * (i + 1), scores)
        figures = summary(scores)
        trial.set_user_attr("figures", figures)
        trial.set_user_attr("subject_auc", {s.subject_id: s.auc for s in scores})
        record.figures(figures)
        return worth(figures, plan.config.objectives)


class Course:
    """The reports of one trial; the pruner may end it at each."""

    def __init__(self, trial, config: TuneConfig, record: "Record") -> None:
        self._trial, self._config, self._record = trial, config, record
        self._is_single = len(config.objectives) == 1
        self.may_prune = self._is_single and config.pruner != "none"

    def look(self, share: float, scores: Sequence[Score]) -> None:
        """Report the first fold's base at a share of its budget."""
        self.report(round(EIGHTHS * share), scores)

    def report(self, step: int, scores: Sequence[Score]) -> None:
        """Report what the subjects so far are worth after `step` eighths."""
        from optuna import TrialPruned

        if not self._is_single:
            return  # optuna has intermediate values for one objective only
        (value,) = worth(summary(scores), self._config.objectives, as_tuple=True)
        self._trial.report(value, step)
        self._record.step(step, value)
        if self.may_prune and self._trial.should_prune():
            raise TrialPruned(f"after {step} eighths of a fold's budget")


def summary(scores: Sequence[Score]) -> dict[str, float]:
    """Return the figures that a study can go by; every subject counts the same."""
    return {
        "auc": statistics.fmean(score.auc for score in scores),
        "f1": statistics.fmean(score.f1 for score in scores),
        "adapt_seconds": statistics.median(score.adapt_seconds for score in scores),
        "adapter_bytes": float(statistics.median(score.adapter_bytes for score in scores)),
    }


def worth(figures: Mapping[str, float], objectives: Sequence[str], *, as_tuple: bool = False):
    """Return the value of one objective, or those of several.

    Raises
    ------
    AdaptationError
        One is not finite.
    """
    values = tuple(figures[name] for name in objectives)
    if not all(math.isfinite(value) for value in values):
        raise AdaptationError(f"the trial is worth {values}; finite numbers were expected.")
    return values if as_tuple or len(values) > 1 else values[0]


def make_sampler(config: TuneConfig, *, number: int):
    """Return the sampler for the trial of that `number`.

    Every trial has a stream of its own: a study that was interrupted doesn't draw the same again,
    and two workers don't draw the same either.
    """
    from optuna.samplers import RandomSampler, TPESampler

    seed = derive_seed(config.seed, "sampler", number) % 2**32
    if config.sampler == "random":
        return RandomSampler(seed=seed)
    least, most = STARTUP_TRIALS
    n_startup = max(least, min(most, config.n_trials // 4))
    return TPESampler(seed=seed, n_startup_trials=n_startup)


def make_pruner(config: TuneConfig):
    """Return the pruner; with two objectives there is none."""
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if config.pruner == "none" or len(config.objectives) > 1:
        return NopPruner()
    if config.pruner == "median":
        return MedianPruner(n_startup_trials=MEDIAN_AFTER, n_warmup_steps=0)
    return HyperbandPruner(
        min_resource=1, max_resource=EIGHTHS * config.n_inner_folds, reduction_factor=REDUCTION
    )


class Record:
    """The trial's own MLflow run."""

    def __init__(self, tracker, objective: str) -> None:
        self._tracker, self._objective = tracker, objective

    def params(self, chosen: Mapping[str, Any]) -> None:
        """Record what was chosen."""
        self._tracker.params(chosen)

    def step(self, step: int, value: float) -> None:
        """Record a report."""
        self._tracker.history("validation", [(step, {self._objective: value})])

    def figures(self, figures: Mapping[str, float]) -> None:
        """Record what the trial is worth."""
        self._tracker.metrics(figures)


@contextmanager
def _recorded(place: Workplace, trial) -> Iterator[Record]:
    """Open the trial's run, and close it with what became of the trial."""
    from optuna import TrialPruned

    config = place.plan.config
    settings = config.tracking
    tracker = make_tracker(
        enabled=settings.enabled,
        uri=settings.uri,
        experiment=settings.experiment,
        out=config.out,
        name=f"{config.study}-trial-{trial.number}",
        parent_run_id=place.run_id,
        tags={
            **recipe_tags(place.plan.recipe.name, commit=place.commit, seeds=[config.seed]),
            "protocol": place.plan.shared.protocol,
            "data_manifest_sha256": place.development.manifest_sha256,
            "study": config.study,
            "trial": trial.number,
            "seed": config.seed,
        },
    )
    state, status, reason = "failed", "FAILED", None
    try:
        yield Record(tracker, config.objectives[0])
        state, status = "complete", "FINISHED"
    except TrialPruned:
        state, status = "pruned", "FINISHED"
        raise
    except KeyboardInterrupt:
        state, status = "interrupted", "KILLED"
        raise
    except Exception as error:
        reason = _in_words(error)
        raise
    finally:
        tracker.tags({"state": state, "reason": reason})
        tracker.end(status)


def _in_words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:1000] if text else type(error).__name__

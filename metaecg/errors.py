"""Every exception and warning of metaecg.

    MetaECGError
        DataError (ValueError)              a recording or its labels are unusable
            NotEnoughWindowsError           fields: subject_id, label, n_found, n_needed
            CacheError (OSError)            the cache can't be written or read
        ConfigError (ValueError)            fields: problems (all of them)
        LeakageError (RuntimeError)         the same subject or window on both sides
        AdaptationError (RuntimeError)      loss not finite, adapter matched no layer
        CheckpointError (RuntimeError)      wrong base, version, labels or preprocessing
        MissingDependencyError (ImportError)
    MetaECGWarning (UserWarning)
        PersonalizationRefusedWarning       the base's answer is kept

Messages say what is wrong, with the value; what was expected; what to do.
"""

from collections.abc import Sequence


class MetaECGError(Exception):
    """Base of everything that metaecg raises on purpose."""


class DataError(MetaECGError, ValueError):
    """A recording, its annotations or a set of windows can't be used."""


class NotEnoughWindowsError(DataError):
    """A subject has too few windows of one class for a task."""

    def __init__(
        self, *, subject_id: str, label: str, n_found: int, n_needed: int, where: str = ""
    ) -> None:
        self.subject_id = subject_id
        self.label = label
        self.n_found = n_found
        self.n_needed = n_needed
        self.where = where
        place = f" {where}" if where else ""
        super().__init__(
            f"subject {subject_id!r} has {n_found} windows of class {label!r}{place}; the task "
            f"needs {n_needed}. Label more windows or lower n_shots."
        )

    def __reduce__(self):
        # The keyword-only constructor would not survive the way back from a worker process.
        fields = (self.subject_id, self.label, self.n_found, self.n_needed, self.where)
        return _rebuild_not_enough, fields


def _rebuild_not_enough(subject_id, label, n_found, n_needed, where) -> NotEnoughWindowsError:
    return NotEnoughWindowsError(
        subject_id=subject_id, label=label, n_found=n_found, n_needed=n_needed, where=where
    )


class CacheError(DataError, OSError):
    """The cache of prepared windows can't be written or read."""


class ConfigError(MetaECGError, ValueError):
    """A configuration has one or more mistakes; `problems` lists all of them."""

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        if len(self.problems) == 1:
            text = self.problems[0]
        else:
            lines = "".join(f"\n  - {problem}" for problem in self.problems)
            text = f"the configuration has {len(self.problems)} mistakes:{lines}"
        super().__init__(text)

    def __reduce__(self):
        return ConfigError, (self.problems,)


class LeakageError(MetaECGError, RuntimeError):
    """A subject or a window would stand on both sides of an evaluation."""


class AdaptationError(MetaECGError, RuntimeError):
    """Training or personalization can't go on: loss not finite, nothing to adapt."""


class CheckpointError(MetaECGError, RuntimeError):
    """Saved weights don't fit: wrong base, version, labels or preprocessing."""


class MissingDependencyError(MetaECGError, ImportError):
    """An optional package is not installed; the message has the line to type."""


class MetaECGWarning(UserWarning):
    """Something the caller should know; no figure changes because of it."""


class PersonalizationRefusedWarning(MetaECGWarning):
    """What was fitted to a patient would do worse than the base, which stays in use."""

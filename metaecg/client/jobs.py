"""Wait for a personalization and return what came out, or raise what the library would."""

import time
import warnings
from collections.abc import Callable

from metaecg.client.errors import JobCancelledError, JobTimeoutError, exception_of
from metaecg.client.http import Http, job_path
from metaecg.client.results import Job, Personalization, read
from metaecg.errors import PersonalizationRefusedWarning

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5
"""Between two looks: a personalization with LoRA ends within half a second, others take longer."""


def wait_for(
    http: Http,
    job: Job,
    *,
    progress: Callable[[float], None] | None,
    timeout_s: float | None,
) -> Job:
    """Return `job` as it is at its end.

    Parameters
    ----------
    http
        The connection.
    job
        As the server last told it.
    progress
        Called with 0 to 1 whenever the number is another one than before.
    timeout_s
        Longest wait in seconds; ``None``: for ever.

    Raises
    ------
    JobTimeoutError
        It isn't over in time; it goes on.
    """
    begin, pause_s, told = time.monotonic(), FIRST_PAUSE_S, None
    while True:
        if progress is not None and job.progress != told:
            told = job.progress
            progress(told)
        if job.is_over:
            return job
        if timeout_s is not None and time.monotonic() - begin >= timeout_s:
            raise JobTimeoutError(
                f"job {job.job_id} is {job.state!r} after {timeout_s:g} s; it goes on. Look again with "
                "job(), wait longer, or end it with cancel().",
                code="job_timeout",
                detail={"job_id": job.job_id},
            )
        time.sleep(pause_s)
        pause_s = min(LONGEST_PAUSE_S, 1.5 * pause_s)
        job = read(Job, http.get(job_path(job.job_id)))


def outcome(job: Job) -> Personalization:
    """Return the result of a job that is over.

    Raises
    ------
    JobCancelledError
        It was cancelled.
    MetaECGError
        It failed: what `Personalizer.fit` would have raised here.

    Warns
    -----
    PersonalizationRefusedWarning
        The labels speak against the new detector, and the one before stays in use.
    """
    if job.state == "cancelled":
        raise JobCancelledError(
            f"job {job.job_id} was cancelled; the detector is as it was before. Start another one.",
            code="job_cancelled",
            detail={"job_id": job.job_id},
        )
    if job.state == "failed" or job.result is None:
        raise exception_of(job.error)
    if job.result.refused:
        warnings.warn(
            f"the personalization for {job.subject_id!r} is refused, the detector before stays in use: "
            f"{' '.join(job.result.reasons)} Check the labels, or label other windows.",
            PersonalizationRefusedWarning,
            stacklevel=3,
        )
    return job.result

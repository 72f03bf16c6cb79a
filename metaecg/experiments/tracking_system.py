"""What the machine does while a run goes on: MLflow's own monitors, and the run's processes."""

import time

from metaecg.experiments.tracking_journal import JournalFile, now_ms

DEFAULT_EVERY_S = 10.0


class Sampler:
    """Writes the load into a journal every ten seconds, as metrics ``system/...``.

    The names are MLflow's (``system/cpu_utilization_percentage``...), for which its monitors are
    asked: processor, memory, disk, network, and a GPU where MLflow finds one. Besides,
    ``system/run_memory_megabytes`` is the resident memory of the run and its workers. The interval
    is ``$MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` if that is set. No thread is involved: whoever
    has the sampler calls it.

    Parameters
    ----------
    file
        Where to write; closed by `finish`.
    """

    def __init__(self, file: JournalFile) -> None:
        from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL

        self._file, self._step = file, 0
        self._every_s = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or DEFAULT_EVERY_S
        self._monitors = _monitors()
        self._due = time.monotonic() + self._every_s

    def sample_if_due(self) -> None:
        """Write a sample if the interval is over."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._every_s
            self._sample()

    def finish(self) -> None:
        """Write the last sample."""
        self._sample()
        self._file.close()

    def _sample(self) -> None:
        values = {"run_memory_megabytes": _run_memory_mb()}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        points = [[f"system/{name}", float(v), self._step] for name, v in values.items()]
        self._step += 1
        self._file.add({"call": "metrics", "values": points, "time_ms": now_ms()})


def _monitors() -> list:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    found[0].collect_metrics()  # the share of the processor is counted from here on
    found[0].clear_metrics()
    try:
        found.append(GPUMonitor())
    except (
        Exception
    ):  # no driver, or its Python package isn't installed: MLflow raises what it likes
        return found
    return found


def _run_memory_mb() -> float:
    """Return the resident memory of the process that started this one, and of its other children."""
    import psutil

    mine, total = psutil.Process(), 0
    try:
        run = mine.parent()
        processes = [run, *run.children(recursive=True)] if run is not None else []
    except psutil.Error:
        return 0.0
    for process in processes:
        try:
            total += 0 if process == mine else process.memory_info().rss
        except psutil.Error:
            continue  # it has just ended
    return round(total / 1e6, 1)

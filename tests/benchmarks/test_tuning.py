"""The arithmetic of the benchmark of studies; the studies themselves are run by hand."""

import tuning


def row(what: str, seconds: float, best: float) -> dict:
    return {"what": what, "seconds": seconds, "cpu_seconds": seconds / 2, "best": best}


def test_ratios_are_of_sums_and_values_are_medians_over_seeds():
    rows = [
        *(row("pruned", s, b) for s, b in ((20, 0.9), (30, 0.8), (10, 0.7))),
        *(row("not pruned", s, b) for s, b in ((60, 0.9), (30, 0.9), (30, 0.6))),
        *(row("random", s, b) for s, b in ((50, 0.5), (40, 0.6), (30, 0.9))),
        *(row("random, two workers", s, b) for s, b in ((20, 0.5), (20, 0.6), (20, 0.9))),
    ]
    assert tuning.summary(rows) == {
        "pruned_over_not_pruned": 0.5,
        "pruned_over_not_pruned_cpu": 0.5,
        "best_pruned_median": 0.8,
        "best_not_pruned_median": 0.9,
        "best_random_median": 0.6,
        "two_workers_trials_per_minute_over_one": 2.0,
    }


def test_a_study_of_the_benchmark_is_a_command_that_tune_takes(tmp_path):
    from metaecg.experiments.tune_options import make_parser, resolve

    class Settings:
        n_trials, budget = 20, 6000

    for options in tuning.STUDIES.values():
        line = tuning.command(options, out=tmp_path, cache=tmp_path, settings=Settings)
        plan = resolve(make_parser("").parse_intermixed_args(line[3:]))
        assert (plan.config.n_trials, plan.shared.budget_windows) == (20, 6000)
        assert not plan.config.tracking.enabled

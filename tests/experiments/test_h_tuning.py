"""`h_tuning`: the command line, a whole run on made-up recordings, resumption, nobody seen twice."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb

from metaecg.data.twelve_lead_files import STANDARD_LEADS
from metaecg.errors import CheckpointError, ConfigError, DataError, LeakageError
from metaecg.experiments import h_tuning, ht_base, ht_data, ht_jobs, ht_options, ht_training
from metaecg.experiments.ht_config import HTConfig

CODES = ("NORM", "IMI", "AMI", "CLBBB")
CLASSES = {"NORM": "NORM", "IMI": "MI", "AMI": "MI", "CLBBB": "CD"}
N_PATIENTS = 40
SMALL = ["databases=ptbxl_subset", "splits=patients", "seeds=0", "workers=1", "input.n_samples=256"]
SMALL += ["pretrain.n_steps=2", "pretrain.batch_size=4", "train.n_steps=3", "train.check_every=2"]
SMALL += ["ptbxl.min_positives=3", "ptbxl.shares=[0.4,0.3,0.3]", "n_resamples=100"]
SMALL += ["tracking.enabled=false", "h_tuning.chunk=3"]
METHODS = "full,lora-micro-2,h-tuning,h-tuning-first-order"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with 40 made-up patients in PTB-XL's layout; a lead tells the statement."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "ptbxl_subset"
    (folder / "records100").mkdir(parents=True)
    with open(folder / "scp_statements.csv", "w", newline="") as text:
        table = csv.writer(text)
        kinds = ("diagnostic", "form", "rhythm")
        table.writerow(["", *kinds, "diagnostic_class", "diagnostic_subclass"])
        table.writerows([code, "1.0", "", "", CLASSES[code], code] for code in CODES)
    with open(folder / "ptbxl_database.csv", "w", newline="") as text:
        table = csv.writer(text)
        columns = ("ecg_id", "patient_id", "report", "scp_codes", "strat_fold", "filename_lr")
        table.writerow(columns)
        for i in range(N_PATIENTS):
            name, code = f"{i:05d}_lr", CODES[i % 4]
            write_record(folder / "records100", name, lead=i % 4, seed=i)
            table.writerow([i, i, "", {code: 100.0}, i % 9 + 1, f"records100/{name}"])
    return root


def write_record(folder, name: str, *, lead: int, seed: int) -> None:
    signals = 0.3 * np.random.default_rng(seed).standard_normal((240, 12))
    signals[:, lead] += np.sin(np.arange(240) / 3)
    wfdb.wrsamp(
        name,
        100,
        ["mV"] * 12,
        list(STANDARD_LEADS),
        signals,
        fmt=["16"] * 12,
        write_dir=str(folder),
    )


@pytest.fixture(autouse=True)
def same_commit(monkeypatch):
    """Stop edits of the checkout during a test from looking like another version."""
    monkeypatch.setattr("metaecg.experiments.provenance.git_commit", lambda: "abc")


def run(data, out, *arguments) -> int:
    places = ["--data", str(data), "--cache", str(data / "cache"), "--out", str(out)]
    return h_tuning.main([*places, *SMALL, *arguments])


def config_of(data, *arguments) -> HTConfig:
    parser = ht_options.make_parser("")
    return ht_options.resolve(
        parser.parse_intermixed_args(["--data", str(data), *SMALL, *arguments])
    )


@pytest.fixture(scope="module")
def finished(data):
    """A run with three methods that has come to its end, with its results."""
    out = data / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metaecg.experiments.provenance.git_commit", lambda: "abc")
        assert run(data, out, "--methods", METHODS, "seeds=0,1") == 0
    return out, json.loads((out / "results.json").read_text())


# --- the command line ----------------------------------------------------------------------------


def test_help_needs_no_torch():
    code = "import sys\nfrom metaecg.experiments import h_tuning\n"
    code += "try: h_tuning.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    assert "h_tuning.mixing=0.85" in done.stdout


def test_every_mistake_is_reported_at_once(tmp_path):
    wrong = ["--methods", "full,h-tunning", "h_tuning.mixing=2", "ptbxl.sharez=1", "seeds=0,0"]
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, *wrong, "cinc2021.shares=[0.5,0.2,0.2]")
    expected = ("h_tuning.mixing is 2: input", "Did you mean 'ptbxl.shares'", "seeds is [0, 0]")
    expected += ("Did you mean 'h-tuning'", "add up to 0.9", "ptbxl_subset in it is no folder")
    assert len(caught.value.problems) == 6
    assert all(text in str(caught.value) for text in expected)


def test_a_database_that_is_misspelt_is_not_looked_for(tmp_path):
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, "databases=ptbxl")
    assert len(caught.value.problems) == 1


def test_data_that_is_not_there_is_named_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="ptbxl_subset in it is no folder"):
        config_of(tmp_path)


def test_a_step_smaller_than_its_first_order_part_is_refused(data):
    with pytest.raises(ConfigError, match="n_first_order is 9, above train.batch_size"):
        config_of(data, "h_tuning.n_first_order=9", "train.batch_size=8")


def test_a_teacher_that_is_no_method_and_leads_given_twice_are_refused(data):
    with pytest.raises(ConfigError) as caught:
        config_of(data, "--distill", "distill.teacher=ful", "distill.leads=[3,3]")
    expected = ("distill.teacher is 'ful'", "Did you mean 'full'", "distill.leads is [3, 3]")
    assert all(text in str(caught.value) for text in expected)


def test_distill_is_an_option_and_a_field(data):
    assert not config_of(data).distill.enabled
    assert config_of(data, "--distill", "distill.n_steps=5").distill.n_steps == 5
    for arguments in (["--distill"], ["distill.enabled=true"], ["--distill", "distill.n_steps=5"]):
        assert config_of(data, *arguments).distill.enabled


def test_a_dry_run_prints_what_config_takes_back(data, tmp_path, capsys):
    assert run(data, tmp_path / "out", "--dry-run", "h_tuning.mixing=0.9") == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    assert config_of(data, "--config", str(tmp_path / "again.yaml")).h_tuning.mixing == 0.9
    assert not (tmp_path / "out").exists()


def test_quick_wins_over_the_file_and_options_over_quick(data, tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("seeds: [3, 4]\nn_resamples: 500\n")
    arguments = ["--data", str(data), "--config", str(file), "--quick", "pretrain.n_steps=7"]
    config = ht_options.resolve(ht_options.make_parser("").parse_intermixed_args(arguments))
    assert (config.seeds, config.n_resamples, config.pretrain.n_steps) == ([0], 200, 7)


def test_the_shipped_configuration_is_valid(data):
    file = Path(__file__).parents[2] / "experiments" / "configs" / "h_tuning.yaml"
    assert config_of(data, "--config", str(file)).hash()


# --- a whole run ---------------------------------------------------------------------------------


def test_every_method_has_every_figure_and_what_it_costs(finished):
    methods = finished[1]["tasks"]["ptbxl_subset--patients"]["methods"]
    assert list(methods) == METHODS.split(",")
    for figures in methods.values():
        assert 0 <= figures["macro_auc"]["mean"] <= 1
        assert set(figures["mean_ap"]["seeds"]) == {"0", "1"}
        assert figures["peak_bytes"] > 0 < figures["step_seconds"]
    assert methods["lora-micro-2"]["peak_bytes"] < methods["full"]["peak_bytes"]
    assert methods["h-tuning"]["trainable_parameters"] < methods["full"]["trainable_parameters"]


def test_the_difference_of_the_reference_to_itself_is_nothing(finished):
    methods = finished[1]["tasks"]["ptbxl_subset--patients"]["methods"]
    assert methods["full"]["difference"]["macro_auc"]["ci95"] == [0.0, 0.0]
    mine, other = methods["h-tuning"]["macro_auc"], methods["full"]["macro_auc"]
    difference = methods["h-tuning"]["difference"]["macro_auc"]
    assert difference["mean"] == pytest.approx(mine["mean"] - other["mean"])


def test_the_results_say_what_the_base_learned_from_and_whom_nobody_else_saw(finished):
    out, results = finished
    assert results["pretraining"]["n_patients"] == N_PATIENTS // 2
    assert "CODE" in results["pretraining"]["statement"]
    facts = json.loads((out / "run.json").read_text())
    base = set(facts["base_subject_ids"])
    for sides in facts["splits"].values():
        assert base.isdisjoint({*sides["train"], *sides["validation"], *sides["test"]})


def test_finished_jobs_are_taken_up_and_give_the_same_figures(data, finished, monkeypatch, capsys):
    out, before = finished
    monkeypatch.setattr(ht_jobs, "run_job", lambda *a, **k: pytest.fail("done once more"))
    assert run(data, out, "--methods", METHODS, "seeds=0,1") == 0
    assert json.loads((out / "results.json").read_text())["tasks"] == before["tasks"]
    assert "finished jobs taken up: 8 of 8" in capsys.readouterr().err


def test_jobs_of_other_settings_are_done_again_and_counted(data, tmp_path, capsys):
    assert run(data, tmp_path, "--methods", "head") == 0
    assert run(data, tmp_path, "--methods", "head", "train.lr_head=0.5") == 0
    assert "of other settings, data or code, done again: 1 of 1" in capsys.readouterr().err


def test_a_run_with_students_takes_up_the_methods_of_one_without(data, tmp_path, capsys):
    one_lead = ["--distill", "distill.leads=[1]", "distill.n_steps=2", "distill.teacher=head"]
    assert run(data, tmp_path, "--methods", "head") == 0
    before = json.loads((tmp_path / "results.json").read_text())["tasks"]["ptbxl_subset--patients"]
    assert run(data, tmp_path, "--methods", "head", *one_lead) == 0
    assert "finished jobs taken up: 1 of 2" in capsys.readouterr().err
    found = json.loads((tmp_path / "results.json").read_text())["tasks"]["ptbxl_subset--patients"]
    students = list(found["distillation"]["networks"])
    assert students == ["teacher", "student-1", "student-1-labels-only"]
    assert found["methods"] == before["methods"]
    for figure in ("macro_auc", "macro_f2"):  # the teacher is the network of its method
        teacher = found["distillation"]["networks"]["teacher"]
        assert teacher[figure] == found["methods"]["head"][figure]
    assert "distillation" not in before
    assert run(data, tmp_path, "--methods", "head", *one_lead) == 0
    assert "finished jobs taken up: 2 of 2" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_a_mistake_of_the_configuration(
    data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(data, tmp_path, "--device", "cuda") == 2
    assert "torch finds no GPU" in capsys.readouterr().err


def test_an_interrupted_run_loses_the_job_under_way_alone(data, finished, tmp_path, monkeypatch):
    real, started = ht_jobs.run_job, []

    def stopping(job, *arguments, **settings):
        started.append(job.name_of_method)
        if len(started) == 2:
            raise KeyboardInterrupt
        return real(job, *arguments, **settings)

    monkeypatch.setattr(ht_jobs, "run_job", stopping)
    assert run(data, tmp_path, "--methods", "full,h-tuning,head") == 130
    assert not (tmp_path / "results.json").exists()
    assert run(data, tmp_path, "--methods", "full,h-tuning,head") == 0
    assert started == ["full", "h-tuning", "h-tuning", "head"]
    results = json.loads((tmp_path / "results.json").read_text())
    again, before = (r["tasks"]["ptbxl_subset--patients"] for r in (results, finished[1]))
    for name in ("full", "h-tuning"):  # the same seed in another run, with other methods beside
        for figure in ("macro_auc", "mean_ap", "macro_f2", "coverage"):
            mine, other = (t["methods"][name][figure]["seeds"]["0"] for t in (again, before))
            assert mine == other


def test_the_test_is_looked_at_once_and_after_all_choices(data, tmp_path, monkeypatch):
    seen = []
    real = ht_training.probabilities

    def watching(network, signals, n_classes):
        seen.append(signals[:, 0, 10].tolist())
        return real(network, signals, n_classes)

    monkeypatch.setattr(ht_training, "probabilities", watching)
    monkeypatch.setattr(ht_jobs, "probabilities", watching)
    grid = ["h_tuning.grid=true", "h_tuning.mixing_grid=[0.9,0.99]", "h_tuning.scale_grid=[0.001]"]
    assert run(data, tmp_path, "--methods", "h-tuning", *grid) == 0
    validation = seen[0]
    assert seen[:-1] == [validation] * 5  # two looks for each of two settings, thresholds
    assert not set(seen[-1]) & set(validation)


@pytest.mark.parametrize(("looks", "mixing"), [((2, 3, 6, 5), 0.99), ((6, 2, 3, 5), 0.9)])
def test_the_grid_is_chosen_by_the_validation(data, tmp_path, monkeypatch, looks, mixing):
    answers = iter(looks)  # two for each of two settings
    monkeypatch.setattr(ht_training, "score", lambda *arguments: next(answers) / 10)
    grid = ["h_tuning.grid=true", "h_tuning.mixing_grid=[0.9,0.99]", "h_tuning.scale_grid=[0.001]"]
    assert run(data, tmp_path, "--methods", "h-tuning", *grid) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    found = results["tasks"]["ptbxl_subset--patients"]["methods"]["h-tuning"]["runs"]["0"]
    assert [trial["mixing"] for trial in found["trials"]] == [0.9, 0.99]
    assert found["settings"]["mixing"] == mixing


def test_a_base_of_an_earlier_run_is_fine_tuned_by_folds(data, finished, tmp_path):
    base = finished[0] / "base"
    assert run(data, tmp_path, "--base", str(base), "--methods", "head", "splits=strat_fold") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["tasks"]) == ["ptbxl_subset--strat_fold"]
    assert not (tmp_path / "base").exists()


def test_a_base_for_another_input_is_refused(data, finished, tmp_path, capsys):
    base = str(finished[0] / "base")
    assert run(data, tmp_path, "--base", base, "input.n_samples=512") == 3
    assert "Set network.size and input.* to the base's" in capsys.readouterr().err


def test_the_base_is_trained_with_one_thread_whatever_the_number_of_cores(
    data, tmp_path, monkeypatch
):
    seen, before = [], torch.get_num_threads()
    train = ht_base.train_base

    def watched(*arguments, **options):
        seen.append(torch.get_num_threads())
        return train(*arguments, **options)

    monkeypatch.setattr(ht_base, "train_base", watched)
    torch.set_num_threads(2)
    try:
        run(data, tmp_path / "out", "--methods", "head")
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_a_second_run_of_a_process_reads_base_and_recordings_again(data, tmp_path, monkeypatch):
    """Another checkout and another recording: the figures are those of a run in a folder of its own."""
    copied = tmp_path / "data"
    shutil.copytree(data / "ptbxl_subset", copied / "ptbxl_subset")
    assert run(copied, tmp_path / "out", "--methods", "head") == 0
    for i in range(N_PATIENTS):
        write_record(
            copied / "ptbxl_subset" / "records100", f"{i:05d}_lr", lead=(i + 1) % 4, seed=99 + i
        )
    answers = {}
    for name in ("out", "other"):
        assert run(copied, tmp_path / name, "--methods", "head", "keep_jobs=true") == 0
        (job,) = (tmp_path / name / "jobs").iterdir()
        with np.load(job / "answers.npz") as found:
            answers[name] = found["test"]
    assert np.array_equal(answers["out"], answers["other"])


def test_a_base_of_other_code_is_trained_again(data, tmp_path, monkeypatch):
    n_trained, train = [], ht_base.train_base

    def counted(*arguments, **options):
        n_trained.append(options["facts"]["commit"])
        return train(*arguments, **options)

    monkeypatch.setattr(ht_base, "train_base", counted)
    for commit in ("abc", "abc", "def"):
        monkeypatch.setattr("metaecg.experiments.provenance.git_commit", lambda c=commit: c)
        assert run(data, tmp_path, "--methods", "head") == 0
    assert n_trained == ["abc", "def"]


def test_a_damaged_base_is_refused(finished, tmp_path):
    from metaecg.experiments.ht_base import load_twelve_lead_base

    for name in ("base.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((finished[0] / "base" / name).read_bytes())
    (tmp_path / "weights.safetensors").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="has the checksum"):
        load_twelve_lead_base(tmp_path)


def test_compute_gives_a_cheaper_step_more_of_them(data):
    from metaecg.experiments.ht_methods import METHODS as TABLE
    from metaecg.experiments.ht_training import n_steps

    config = config_of(data, "train.budget=compute", "train.n_steps=100")
    found = {name: n_steps(TABLE[name], config, 128) for name in ("full", "h-tuning", "head")}
    assert found == {"full": 100, "h-tuning": 147, "head": 300}  # 384, 262 and 128 forwards


# --- nobody is seen twice ------------------------------------------------------------------------


def test_a_split_with_a_patient_of_the_base_is_leakage(
    data, finished, tmp_path, monkeypatch, capsys
):
    real = ht_data.cohort

    def forgetful(config, database, *, seen):
        return real(config, database, seen=())

    monkeypatch.setattr(ht_data, "cohort", forgetful)
    assert run(data, tmp_path, "--base", str(finished[0] / "base"), "--methods", "head") == 3
    assert "leakage: ptbxl_subset--patients: the base was trained on" in capsys.readouterr().err


@pytest.fixture
def challenge(data, monkeypatch):
    """The made-up PTB-XL, and as Challenge its first four records; two of them are of strangers."""
    config = config_of(data, "databases=ptbxl_subset,cinc2021_sample", "cinc2021.min_positives=1")
    found = ht_data._read_ptbxl(config, "subclass").select(np.arange(4))
    ids = np.array([f"challenge-2021/HR{i:05d}" for i in range(4)])
    subjects = np.array(["ptb-xl/patient-0", "ptb-xl/patient-1", *ids[2:]])
    found = replace(found, record_ids=ids, subject_ids=subjects, strat_fold=None)
    monkeypatch.setattr(ht_data, "_read_challenge", lambda config: found)
    return config


@pytest.fixture(autouse=True)
def challenge_folder(data):
    (data / "cinc2021_sample").mkdir(exist_ok=True)


def test_the_base_never_learns_from_patients_of_the_challenge(challenge):
    chosen = set(ht_data.pretraining_set(challenge).subject_ids.tolist())
    assert len(chosen) == N_PATIENTS // 2
    assert chosen.isdisjoint({"ptb-xl/patient-0", "ptb-xl/patient-1"})
    everybody = challenge.ptbxl.model_copy(update={"pretrain_share": 0.99})
    with pytest.raises(DataError, match="of whom 38 may be chosen"):
        ht_data.pretraining_set(challenge.model_copy(update={"ptbxl": everybody}))


def test_records_of_the_challenge_whose_ptbxl_patient_is_unknown_are_left_out(challenge):
    found = ht_data.cohort(challenge, "cinc2021_sample", seen=["ptb-xl/patient-9"])
    assert found.records.subject_ids.tolist() == ["ptb-xl/patient-0", "ptb-xl/patient-1"]
    assert found.notes[0].startswith("2 records are left out: they are PTB-XL's")
    assert "rank no methods" in found.notes[-1]


def test_whom_the_base_has_seen_is_left_out_and_counted(challenge):
    found = ht_data.cohort(challenge, "cinc2021_sample", seen=["ptb-xl/patient-1"])
    assert found.records.subject_ids.tolist() == ["ptb-xl/patient-0"]
    assert found.notes[1].startswith("1 patients of cinc2021_sample are left out")


def test_a_planted_leak_is_found_job_by_job():
    from metaecg.data.splits import Split
    from metaecg.experiments.ht_methods import METHODS as TABLE

    split = Split(name="s", train=("a",), validation=("b",), test=("c",))
    job = ht_jobs.Job(
        database="x", split_kind="patients", split=split, seed=0, name_of_method="head",
        method=TABLE["head"],
    )  # fmt: skip
    h_tuning._check_unseen(job, {"d"})
    with pytest.raises(LeakageError, match="1 of its subjects, first 'b'"):
        h_tuning._check_unseen(job, {"b", "d"})


def test_the_run_is_an_mlflow_run_with_its_data_and_its_base(data, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracked = ["--methods", "full", "tracking.enabled=true", "tracking.register_as=twelve"]
    assert run(data, tmp_path / "run", *tracked) == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (recorded,) = client.search_runs([client.get_experiment_by_name("h_tuning").experiment_id])
    assert recorded.info.status == "FINISHED"
    assert recorded.data.params["train.n_steps"] == "3"
    assert recorded.data.tags["protocol"] == "splits by patient: patients"
    assert recorded.data.tags["mlflow.source.git.commit"] == "abc"
    (dataset,) = [each.dataset for each in recorded.inputs.dataset_inputs]
    assert (dataset.name, json.loads(dataset.profile)["database"]) == (
        "ptbxl_subset",
        "ptb-xl 1.0.3",
    )
    assert str(data) not in dataset.source
    name = "ptbxl_subset--patients--seed-0--full/loss"
    course = client.get_metric_history(recorded.info.run_id, name)
    assert [point.step for point in course] == [1, 2, 3]
    (version,) = client.search_model_versions("name = 'twelve'")
    assert version.run_id == recorded.info.run_id

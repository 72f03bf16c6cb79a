"""Teacher to student: the loss, the mixing, the masked leads, and what goes wrong."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metaecg.adapt.cutmix import cutmix
from metaecg.adapt.distill import REDUCED_LEADS, distill, mask_leads, mean_average_precision
from metaecg.errors import AdaptationError, DataError
from metaecg.models.registry import build_network

N_LEADS, N_SAMPLES, N_CLASSES = 12, 64, 3


class Tiny(nn.Module):
    """A convolution, batch norm and a head."""

    def __init__(self, *, seed=0, n_leads=N_LEADS, n_classes=N_CLASSES, dropout=0.0, width=8):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv1d(n_leads, width, 5, padding=2)
            self.norm = nn.BatchNorm1d(width)
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(width, n_classes)

    def forward(self, x):
        return self.head(self.dropout(self.norm(self.conv(x)).relu().amax(dim=2)))


def statements(n=60, *, seed=0):
    """Return windows and several statements each: statement k is a wave on leads 4k to 4k + 3."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, N_CLASSES)) < 0.4).astype(np.float32)
    labels[0] = 1
    wave = np.sin(np.arange(N_SAMPLES) * 0.7)
    on_leads = np.repeat(labels, 4, axis=1)[:, :, None] * wave
    noise = 0.2 * rng.standard_normal((n, N_LEADS, N_SAMPLES))
    return (on_leads + noise).astype(np.float32), labels


def taught(student=None, teacher="default", **kwargs):
    """Run `distill` on little data; return the student and what happened."""
    student = Tiny() if student is None else student
    teacher = Tiny(seed=9).eval() if teacher == "default" else teacher
    windows, labels = statements()
    plain = {"windows": windows, "labels": labels, "n_steps": 8, "batch_size": 16}
    plain |= {"rng": np.random.default_rng(5)}
    return student, distill(student, teacher, **(plain | kwargs))


def weights_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- the loss and the step ---------------------------------------------------------------------


def test_the_loss_is_that_of_the_labels_and_that_of_the_teacher_one_to_one():
    windows, labels = statements(16)
    student, teacher = Tiny().train(), Tiny(seed=9).eval()
    x, y = torch.from_numpy(windows), torch.from_numpy(labels)
    logits, soft = copy.deepcopy(student)(x), torch.sigmoid(teacher(x))
    expected = F.binary_cross_entropy_with_logits(logits, y)
    expected = expected + F.binary_cross_entropy_with_logits(logits, soft)
    _, found = taught(student, teacher, windows=windows, labels=labels, n_steps=1, cutmix_beta=None)
    assert found.losses == pytest.approx([expected.item()], rel=1e-6)


def test_one_class_per_window_is_taught_through_the_softmax():
    windows, _ = statements(16)
    labels = np.arange(16) % N_CLASSES
    student, teacher = Tiny().train(), Tiny(seed=9).eval()
    x = torch.from_numpy(windows)
    logits, soft = copy.deepcopy(student)(x), teacher(x).softmax(dim=1)
    log_p = logits.log_softmax(dim=1)
    expected = -log_p[torch.arange(16), torch.from_numpy(labels)].mean()
    expected = expected - (soft * log_p).sum(dim=1).mean()
    _, found = taught(student, teacher, windows=windows, labels=labels, n_steps=1, cutmix_beta=None)
    assert found.losses == pytest.approx([expected.item()], rel=1e-6)


def test_without_a_teacher_the_labels_alone_count():
    windows, labels = statements(16)
    student = Tiny().train()
    logits = copy.deepcopy(student)(torch.from_numpy(windows))
    expected = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels))
    _, found = taught(student, None, windows=windows, labels=labels, n_steps=1, cutmix_beta=None)
    assert found.losses == pytest.approx([expected.item()], rel=1e-6)


def test_the_student_comes_nearer_to_its_teacher():
    teacher, _ = taught(Tiny(seed=9), None, n_steps=60, lr=1e-2)
    x = torch.from_numpy(statements(40, seed=1)[0])
    wanted = teacher(x).sigmoid()
    before = (Tiny().eval()(x).sigmoid() - wanted).abs().mean()
    student, found = taught(teacher=teacher, n_steps=60, lr=1e-2)
    after = (student(x).sigmoid() - wanted).abs().mean()
    assert after < 0.5 * before
    assert np.mean(found.losses[-10:]) < np.mean(found.losses[:10])


def test_the_teacher_is_evaluated_and_left_as_it_was():
    teacher = Tiny(seed=9, dropout=0.5).train()
    before = weights_of(teacher)
    taught(teacher=teacher)
    assert same(weights_of(teacher), before)  # batch norm's statistics included
    assert teacher.training and teacher.norm.training
    assert all(p.grad is None for p in teacher.parameters())


def test_the_students_batch_norm_learns_and_its_frozen_weights_stay():
    student = Tiny()
    student.conv.requires_grad_(False)
    before = weights_of(student)
    taught(student)
    after = weights_of(student)
    assert torch.equal(after["conv.weight"], before["conv.weight"])
    assert not torch.equal(after["norm.running_mean"], before["norm.running_mean"])
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert not student.training
    assert all(p.grad is None for p in student.parameters())


def test_the_rate_rises_and_falls_to_nothing():
    told = []
    taught(n_steps=200, lr=1e-3, on_step=lambda step, facts: told.append((step, facts["lr"])))
    assert [step for step, _ in told] == list(range(1, 201))
    rates = [rate for _, rate in told]
    assert rates[:3] == pytest.approx([0.5e-3, 1e-3, 1e-3])
    assert rates[101] == pytest.approx(1e-3 * 99 / 198)
    assert rates[-1] == pytest.approx(1e-3 / 198)


# -- randomness --------------------------------------------------------------------------------


def test_the_same_generator_gives_the_same_student_dropout_included():
    students = [weights_of(taught(Tiny(dropout=0.3))[0]) for _ in range(2)]
    assert same(*students)
    other, _ = taught(Tiny(dropout=0.3), rng=np.random.default_rng(6))
    assert not same(students[0], weights_of(other))


def test_the_global_random_state_is_left_as_it_was():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    taught(Tiny(dropout=0.3))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


# -- leads -------------------------------------------------------------------------------------


def test_the_published_leads_are_ii_v1_v5_and_i():
    order = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    named = {n: [order[lead] for lead in leads] for n, leads in REDUCED_LEADS.items()}
    assert named == {12: order, 3: ["II", "V1", "V5"], 1: ["I"]}


class Watching(Tiny):
    """Remembers what it was shown."""

    def forward(self, x):
        self.shown = x.detach().clone()
        return super().forward(x)


def test_the_student_sees_the_chosen_leads_alone_and_the_teacher_all_of_the_same_mixture():
    student, teacher = Watching(), Watching(seed=9)
    taught(student, teacher, leads=REDUCED_LEADS[3], n_steps=1)
    kept = list(REDUCED_LEADS[3])
    rest = [lead for lead in range(N_LEADS) if lead not in kept]
    assert torch.equal(student.shown[:, kept], teacher.shown[:, kept])
    assert not student.shown[:, rest].any()
    assert teacher.shown[:, rest].all()


def test_the_validation_is_masked_as_the_training_is():
    student = Watching()
    taught(student, leads=[0], n_steps=1, validation=statements(10, seed=1))
    assert student.shown.shape[0] == 10
    assert student.shown[:, 0].any() and not student.shown[:, 1:].any()


def test_masking_makes_new_windows():
    x = torch.ones(2, 3, 4)
    assert mask_leads(x, [2]).sum(dim=(0, 2)).tolist() == [0, 0, 8]
    assert x.all()
    assert mask_leads(x, None) is x


# -- CutMix ------------------------------------------------------------------------------------


def test_labels_are_mixed_by_the_area_that_was_really_put_in():
    rng = np.random.default_rng(0)
    x = torch.arange(5.0)[:, None, None].expand(5, 12, 100)
    for _ in range(200):
        mixed, y = cutmix(x, torch.eye(5), rng=rng)
        shares = torch.stack([(mixed == k).float().mean(dim=(1, 2)) for k in range(5)], dim=1)
        assert torch.allclose(shares, y, atol=1e-6)


def test_the_box_is_one_of_leads_and_time_with_sides_alike():
    x = torch.arange(2.0)[:, None, None].expand(2, 12, 1000)
    boxes = 0
    for seed in range(200):
        mixed, y = cutmix(x, torch.eye(2), rng=np.random.default_rng(seed))
        foreign = mixed[0] != 0
        rows, columns = foreign.any(dim=1), foreign.any(dim=0)
        assert torch.equal(foreign, rows[:, None] & columns)  # a rectangle
        inside = rows.any() and not (rows[0] or rows[-1] or columns[0] or columns[-1])
        if inside:  # nothing was cut off, so the sides can be compared
            boxes += 1
            side = (1 - np.random.default_rng(seed).beta(0.75, 0.75)) ** 0.5  # its first draw
            assert abs(rows.float().mean() - side) <= 1 / 12
            assert abs(columns.float().mean() - side) <= 1 / 1000
    assert boxes > 10


def test_one_lead_loses_a_stretch_of_time():
    rng = np.random.default_rng(0)
    x = torch.arange(2.0)[:, None, None].expand(2, 1, 1000)
    shares = []
    for _ in range(500):
        _, y = cutmix(x, torch.eye(2), rng=rng)
        shares.append(float(y[0, 1]))
    changed = [share for share in shares if share]
    assert len(changed) > 150  # the partner is another window every second time
    assert 0.3 < np.mean(changed) < 0.5  # half, less what leaves the window


def test_cutmix_changes_nothing_in_place():
    x, y = torch.randn(4, 12, 50), torch.eye(4)
    copies = x.clone(), y.clone()
    cutmix(x, y, rng=np.random.default_rng(0))
    assert torch.equal(x, copies[0]) and torch.equal(y, copies[1])


def test_a_beta_that_is_not_above_zero_is_refused():
    with pytest.raises(ValueError, match="cutmix_beta is 0; a number above 0"):
        taught(cutmix_beta=0)


# -- validation and early stop -----------------------------------------------------------------


def test_average_precision_is_averaged_over_the_classes_that_occur():
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    scores = np.array([[0.9, 0.2, 0.5], [0.8, 0.1, 0.5], [0.7, 0.3, 0.5], [0.1, 0.4, 0.5]])
    first = 0.5 * 1 + 0.5 * 2 / 3  # found first and third
    second = 1 / 4  # found last
    assert mean_average_precision(labels, scores) == pytest.approx((first + second) / 2)


def test_training_ends_when_the_score_no_longer_rises_and_the_best_weights_come_back(monkeypatch):
    scripted = iter([0.3, 0.5, 0.4, 0.5, 0.2])
    kept = {}
    student = Tiny()

    def score(labels, probabilities):
        kept[len(kept) + 1] = weights_of(student)
        return next(scripted)

    monkeypatch.setattr("metaecg.adapt.distill.mean_average_precision", score)
    _, found = taught(
        student, n_steps=100, check_every=2, patience=3, validation=statements(10, seed=1)
    )
    assert found.scores == {2: 0.3, 4: 0.5, 6: 0.4, 8: 0.5, 10: 0.2}
    assert found.best_step == 4
    assert len(found.losses) == 10
    assert same(weights_of(student), kept[2])
    assert not same(kept[2], kept[5])


def test_the_last_step_is_scored_too():
    _, found = taught(n_steps=7, check_every=5, validation=statements(10, seed=1))
    assert list(found.scores) == [5, 7]


def test_without_validation_the_last_weights_stay():
    _, found = taught(n_steps=7, check_every=5)
    assert (found.scores, found.best_step, len(found.losses)) == ({}, 7, 7)


def test_validation_without_any_true_label_is_refused_and_the_student_is_as_it_was():
    windows, labels = statements(10)
    student = Tiny()
    before = weights_of(student)
    with pytest.raises(DataError, match="none of 3 classes is true in any of 10 validation"):
        taught(student, validation=(windows, 0 * labels))
    assert same(weights_of(student), before)


# -- what goes wrong ---------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_step_and_leaves_the_student_as_it_was():
    student = Tiny().train()
    before = weights_of(student)
    with pytest.raises(
        AdaptationError, match=r"the loss is (nan|inf) at step \d of 8 \(lr=1e\+30\)"
    ):
        taught(student, lr=1e30)
    assert same(weights_of(student), before)
    assert student.training
    assert all(p.grad is None for p in student.parameters())


def test_a_teacher_that_says_nan_is_named_with_the_step():
    teacher = Tiny(seed=9)
    teacher.head.bias.data[0] = float("nan")
    with pytest.raises(AdaptationError, match="the teacher's answer holds NaN .* step 1 of 8"):
        taught(teacher=teacher)


def test_windows_with_nan_are_refused():
    windows, labels = statements()
    windows[3, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"windows\[3\] holds NaN"):
        taught(windows=windows)


def test_student_and_teacher_of_other_classes_are_refused():
    with pytest.raises(DataError, match=r"'student': \(1, 3\), 'teacher': \(1, 4\).*same classes"):
        taught(teacher=Tiny(n_classes=4))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((60, 4)), r"labels has shape \(60, 4\); expected \(60,\) or \(60, 3\)"),
        (np.zeros((59, 3)), r"labels has shape \(59, 3\)"),
        (np.full((60, 3), 0.5), "labels holds 0.5; expected 0 and 1"),
        (np.full(60, 3), "labels goes from 3 to 3 .*from 0 to 2"),
        (np.zeros(60), "labels goes from 0.0 to 0.0 .float64.; whole numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        taught(labels=labels)


def test_validation_of_another_shape_is_refused():
    windows, labels = statements(10)
    with pytest.raises(
        DataError, match=r"validation windows .*\(12, 32\); \(12, 64\) was expected"
    ):
        taught(validation=(windows[:, :, :32], labels))
    with pytest.raises(DataError, match=r"validation labels has shape \(10, 2\)"):
        taught(validation=(windows, labels[:, :2]))


@pytest.mark.parametrize("leads", [[], [12], [-1], [0, 0]])
def test_leads_that_are_not_there_are_refused(leads):
    with pytest.raises(ValueError, match="leads is .*different places from 0 to 11"):
        taught(leads=leads)


@pytest.mark.parametrize("name", ["n_steps", "lr", "check_every", "patience", "batch_size"])
def test_numbers_that_are_not_above_zero_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; a number above 0"):
        taught(**{name: 0})


def test_a_network_of_the_library_teaches_another(make_windows):
    windows, labels, _ = make_windows(20)
    networks = [
        build_network(
            "compact-cnn",
            n_leads=1,
            n_samples=100,
            fs_hz=100.0,
            n_classes=2,
            width=width,
            generator=torch.Generator().manual_seed(width),
        )
        for width in (8, 16)
    ]
    validation = make_windows(10, seed=1)[:2]
    student, teacher = networks
    rng = np.random.default_rng(0)
    distill(teacher, None, windows, labels, n_steps=60, rng=rng, lr=3e-3, batch_size=20)
    found = distill(
        student,
        teacher,
        windows,
        labels,
        n_steps=60,
        rng=rng,
        lr=3e-3,
        batch_size=20,
        validation=validation,
        check_every=20,
    )
    assert found.scores[found.best_step] > 0.8


def test_a_student_of_three_leads_answers_the_same_when_its_first_layers_are_cut_down():
    from metaecg.models.backbones.cnn_transformer import CNNTransformer, slim_leads

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"n_leads": 12, "n_samples": N_SAMPLES, "fs_hz": 500.0, "n_classes": N_CLASSES}
        student, teacher = (CNNTransformer(**sizes, width=width) for width in (16, 32))
    taught(student, teacher, leads=REDUCED_LEADS[3])
    x = torch.from_numpy(statements(10, seed=1)[0])
    slim = slim_leads(student, REDUCED_LEADS[3])
    with torch.no_grad():
        expected = student(mask_leads(x, REDUCED_LEADS[3]))
        assert torch.allclose(slim(x[:, list(REDUCED_LEADS[3])]), expected, atol=1e-6)

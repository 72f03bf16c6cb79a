import numpy as np
import pytest
import torch
from torch import nn

from metaecg.data.preprocessing import Preprocessing
from metaecg.models.checkpoints import BaseModel
from metaecg.models.registry import build_network

FS_HZ, WINDOW_S = 100.0, 1.0


def make_base(*, seed=0, architecture="compact-cnn", classes=("other", "va"), **kwargs):
    preprocessing = Preprocessing(fs_hz=FS_HZ, window_s=WINDOW_S)
    network = build_network(
        architecture,
        n_leads=1,
        n_samples=preprocessing.n_samples,
        fs_hz=FS_HZ,
        n_classes=len(classes),
        generator=torch.Generator().manual_seed(seed),
        **kwargs,
    )
    return BaseModel(
        network=network,
        architecture=architecture,
        architecture_kwargs=kwargs,
        n_leads=1,
        classes=classes,
        preprocessing=preprocessing,
    )


def make_windows(n_per_class, *, seed=0, frequencies_hz=(1.5, 6.0)):
    """Return windows whose class is their frequency: (windows, labels, time_s), classes in turn."""
    generator = np.random.default_rng(seed)
    labels = np.tile(np.arange(len(frequencies_hz)), n_per_class)
    t_s = np.arange(round(FS_HZ * WINDOW_S)) / FS_HZ
    phase = generator.uniform(0, 2 * np.pi, (len(labels), 1))
    waves = np.sin(2 * np.pi * np.array(frequencies_hz)[labels][:, None] * t_s + phase)
    waves = waves + 0.3 * generator.standard_normal(waves.shape)
    return waves[:, None].astype(np.float32), labels, np.arange(len(labels)) * 2.0


@pytest.fixture(scope="session")
def base():
    return make_base(width=16)


@pytest.fixture(scope="session")
def metava_base():
    return make_base(architecture="metava", mid=8, d_model=8, feedforward=16)


@pytest.fixture(scope="session")
def support():
    return make_windows(10)


@pytest.fixture(scope="session")
def later():
    return make_windows(40, seed=1)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(name="make_base", scope="session")
def _make_base():
    return make_base


@pytest.fixture(name="make_windows", scope="session")
def _make_windows():
    return make_windows


class Odd(nn.Module):
    """Layers that LoRA can and can't adapt."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv1d(1, 8, 3, padding=1)
        self.dilated = nn.Conv1d(8, 8, 3, padding=2, dilation=2)
        self.grouped = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.circular = nn.Conv1d(8, 8, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.wide = nn.Linear(8, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        x = self.norm(self.circular(self.grouped(self.dilated(self.plain(x))))).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x, _ = self.gru(self.encoder(x))
        return self.head(self.wide(x).relu().mean(dim=1))


@pytest.fixture
def odd():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Odd().eval()


@pytest.fixture
def odd_x():
    return torch.randn(6, 1, 20, generator=torch.Generator().manual_seed(1))

"""Fixtures that every test may ask for."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium as gym
import hypothesis
import pytest
import torch
from factory import CONFIGS, REMOTE_ID, publish
from hub import ORGANISATION, Hub
from safetensors.torch import save_file

import qgpo.networks
from qgpo import QGPOConfig

if hasattr(signal, "SIGHUP"):  # `nohup make test` ignores it, and a training respects that
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.set_num_threads(1)  # for the fixtures of modules too: other threads, other last digits
TRUE_WIDTHS = qgpo.networks.UNET_WIDTHS
qgpo.networks.UNET_WIDTHS = (8, 4, 2)  # a checkpoint with the true ones has 26 MB


@pytest.fixture
def true_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's network as users get it."""
    monkeypatch.setattr("qgpo.networks.UNET_WIDTHS", TRUE_WIDTHS)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without their picture, which takes longer than all else of them."""
    monkeypatch.setattr("qgpo.experiments.run_figure.draw_run", lambda *_: None)


@pytest.fixture
def short_pendulum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of Pendulum-v1 end after five steps instead of 200."""
    monkeypatch.setattr(gym.spec("Pendulum-v1"), "max_episode_steps", 5)


@pytest.fixture(params=sorted(CONFIGS))
def config(request: pytest.FixtureRequest) -> QGPOConfig:
    return CONFIGS[request.param]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The support table in several steps even on tiny datasets."""
    monkeypatch.setattr("qgpo.agents.guided.support.ROWS_PER_CHUNK", 12)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Minari's remote on this machine, with one dataset."""
    server = Hub()
    monkeypatch.setenv("MINARI_REMOTE", f"hf://{ORGANISATION}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before each of its retries
    publish(server, tmp_path / "far", REMOTE_ID)
    yield server
    server.close()


@pytest.fixture
def policy_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small Gaussian actor, by default for Pendulum-v1."""

    def write(
        name: str = "actor", observation_dim: int = 3, action_dim: int = 1, seed: int = 0
    ) -> Path:
        generator = torch.Generator().manual_seed(seed)
        weights = {
            "mlp_extractor.policy_net.0.weight": torch.randn(
                4, observation_dim, generator=generator
            ),
            "mlp_extractor.policy_net.0.bias": torch.randn(4, generator=generator),
            "action_net.weight": torch.randn(action_dim, 4, generator=generator),
            "action_net.bias": torch.zeros(action_dim),
            "log_std": torch.full((action_dim,), -1.0),
        }
        path = tmp_path / f"{name}.safetensors"
        save_file(weights, path, metadata={"activation": "tanh"})
        return path

    return write


hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")

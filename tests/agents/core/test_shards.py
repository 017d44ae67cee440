"""Several processes train as one does: the same losses, parameters and images."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest
import torch
from commands import Started
from factory import subprocess_environment

pytest.importorskip("diffusers", reason="the images extra is not installed")
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no distributed processes"
)

LIFE = """
import json, sys
import numpy as np, torch
from qgpo.agents.core.shards import is_first, joined, n_processes
from qgpo.agents.images import EnergyGuidedImages, ImageConfig
from qgpo.images.colors import hue_energies

torch.set_num_threads(1)
config = ImageConfig(beta=5.0, channels=(4, 4), norm_groups=2, data_steps=8, energy_channels=(4, 4),
                     guidance_steps=12, contrast=7, groups=1, solver_steps=3)
images = np.random.default_rng(0).integers(0, 255, (50, 3, 4, 4)).astype(np.uint8)
losses = []

def note(model):
    if len(losses) == {stop}:
        model.training.interrupt()

with joined() as device:
    model = EnergyGuidedImages(config, seed=0, device="cpu")
    optimize = model.training.optimize
    def noting(name, loss, *rest):
        losses.append(float(loss.detach()))
        return optimize(name, loss, *rest)
    model.training.optimize = noting
    stopped = False
    try:
        model.fit(images, hue_energies, callback=note if {only} in (None, is_first()) else None)
    except KeyboardInterrupt:
        stopped = True
    samples = [] if stopped else model.sample(5, target=1).flatten().tolist()
    if is_first():
        print(json.dumps([n_processes(), losses, samples, stopped]))
"""


def lives(tmp_path, n, stop=None, only=None):
    """What the first of n processes prints."""
    import json

    file = tmp_path / f"life{n}.py"
    file.write_text(LIFE.format(stop=stop, only=only), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(n):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n)}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = subprocess_environment(**ranks, **where)
        started.append(Started([str(file)], tmp_path, environment))
    codes = [one.wait() for one in started]
    assert codes == [0] * n, [one.printed()[1] for one in started]
    return json.loads(started[0].printed()[0].splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="new interpreters take too long")
def test_two_processes_have_the_losses_of_one(tmp_path):
    one, losses, samples, _ = lives(tmp_path, 1)
    two, of_two, samples_of_two, _ = lives(tmp_path, 2)
    assert (one, two, len(losses)) == (1, 2, 20)
    np.testing.assert_allclose(of_two, losses, rtol=0, atol=1e-6)
    np.testing.assert_allclose(samples_of_two, samples, rtol=0, atol=1e-3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="new interpreters take too long")
def test_they_stop_together_where_one_is_asked_to(tmp_path):
    _, losses, _, stopped = lives(tmp_path, 2, stop=3, only=False)
    assert stopped
    assert len(losses) == 3

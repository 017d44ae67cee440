from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qgpo.scripts import evaluate


@pytest.mark.parametrize(
    ("scales", "filmed", "said"),
    [
        ((0.0, 1.0), 1.0, "w = 1 (guided): 5 frames, 0.5 s"),
        ((2.0, 0.0), 0.0, "w = 0 (imitation): 5 frames, 0.5 s"),
        ((4.0,), 4.0, "w = 4 (guided): 5 frames, 0.5 s"),
        ((None,), 0.25, "5 frames, 0.5 s"),  # members with scales of their own
    ],
)
def test_the_clip_is_of_the_last_scale(scales, filmed, said, monkeypatch, capsys):
    agent = SimpleNamespace(guidance_scale=0.25)
    clips = []

    def record(agent, env, seconds, seed, deterministic):
        clips.append(agent.guidance_scale)
        return [np.zeros((2, 2, 3), np.uint8)] * 5, 10.0

    monkeypatch.setattr(evaluate, "record", record)
    monkeypatch.setattr(evaluate, "write_clip", lambda *clip: None)
    args = evaluate.Args(run=(Path("run"),), video=Path("a.gif"))
    evaluate.film(args, Path("a.gif"), agent, "Hopper-v5", scales[-1])
    assert clips == [filmed]
    assert capsys.readouterr().out == f"video: a.gif ({said})\n"

"""Pack a run's agent as one that comes with the package, and compare both by playing them.

    python scripts/train.py --dataset-id qgpo/halfcheetah/mixed-v0 --longer 0.75 \
        --run-dir runs/pretrained
    python scripts/evaluate.py --run runs/pretrained --tune-guidance --n-episodes 1
    python benchmarks/pretrained.py --run runs/pretrained --name halfcheetah/mixed \
        --guidance-scale 2

writes agents/pretrained/QGPO-halfcheetah-mixed.safetensors and a row of
benchmarks/pretrained.json: returns of the same episodes with the checkpoint's weights, with those
rounded to float16, and with those rounded to int8. The package gets the latter, unless --bits 16.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from qgpo.agents import OfflineAgent, load_agent
from qgpo.agents.core import pretrained
from qgpo.agents.core.checkpoint import read_header
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.envs.play.evaluation import evaluate
from qgpo.envs.play.scores import Evaluation
from qgpo.files import write_whole

RESULT = Path(__file__).parent / "pretrained.json"
LABELS = {32: "checkpoint", 16: "float16", 8: "int8"}
KEPT = ("critic_weights",)
"""of the critic's networks: whether it ranks actions decides whether the agent is guided"""


@dataclass
class Args:
    """Pack and compare."""

    run: Path
    """run folder with checkpoint.zip"""
    name: str
    """how it is asked for, for example halfcheetah/mixed"""
    bits: int = 8
    """of each weight in the package, 8 or 16"""
    guidance_scale: float | None = None
    """the scale that the packed agent has; default the configured one"""
    n_episodes: int = 50
    """episodes of each"""
    seed: int = 10_000
    """seed of the first episode"""


def not_for_acting(agent: OfflineAgent[Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The networks of a guided agent that acting does not use; those that may be another one's."""
    if not isinstance(agent, GuidedPolicy):
        return (), {}
    left_out = tuple(name for name in agent.critic.networks if name not in KEPT)
    if "dynamics" in agent.networks:
        left_out += ("dynamics",)
    return left_out, {"behavior": "behavior_ema"}


def check_acts_without(agent: OfflineAgent[Any], networks: tuple[str, ...]) -> None:
    """Stop where the agent's actions depend on one of these networks: NaN there would show."""
    assert agent.observation_space is not None
    poisoned = copy.deepcopy(agent)
    for name in networks:
        for tensor in poisoned.networks[name].state_dict().values():
            tensor.fill_(torch.nan)
    observations = np.random.default_rng(0).normal(size=(20, *agent.observation_space.shape))
    for deterministic in (True, False):
        poisoned.predict(observations, deterministic=deterministic)  # refuses NaN


def summary(played: Evaluation) -> dict[str, Any]:
    """What the result says of an evaluation."""
    return {
        "mean": round(played.mean, 1),
        "interval": [round(x, 1) for x in played.interval or ()],
        "score": None if played.score is None else round(played.score, 2),
        "episodes": len(played.returns),
    }


def main(args: Args) -> None:
    """Pack, read again, play both, and note it."""
    checkpoint = args.run / "checkpoint.zip"
    agent = load_agent(checkpoint, device="cpu")
    if not agent.is_trained or agent.env_spec is None:
        raise SystemExit(f"{checkpoint}: expected an agent that is trained, of a known environment")
    about = read_header(checkpoint)
    if args.guidance_scale is not None:
        assert isinstance(agent, GuidedPolicy)
        agent.configure_guidance(args.guidance_scale)
        about["config"]["guidance_scale"] = args.guidance_scale
    left_out, same_as = not_for_acting(agent)
    check_acts_without(agent, left_out)
    target = pretrained.FOLDER / f"{agent.name}-{args.name.replace('/', '-')}.safetensors"
    rows: dict[str, Any] = {}
    for bits in (32, *sorted((8, 16), key=lambda b: b == args.bits)):  # the last one stays
        one, size = agent, checkpoint.stat().st_size
        if bits < 32:
            state = agent.networks.state_dict()
            write_whole(target, pretrained.pack(about, state, left_out, same_as, bits))
            one, size = type(agent).pretrained(args.name, device="cpu"), target.stat().st_size
        one.seed_predictions(0)
        played = evaluate(one, agent.env_spec, args.n_episodes, args.seed)
        rows[LABELS[bits]] = {**summary(played), "bytes": size}
        print(LABELS[bits], rows[LABELS[bits]], flush=True)
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    result[f"{agent.name} {args.name}"] = {
        "dataset": agent.dataset_id,
        "timesteps": agent.num_timesteps,
        "seed": agent.training.seed,
        "guidance_scale": about["config"].get("guidance_scale"),
        "bits": args.bits,
        "torch": torch.__version__,
        **rows,
    }
    write_whole(RESULT, (json.dumps(result, indent=2, sort_keys=True) + "\n").encode())
    print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

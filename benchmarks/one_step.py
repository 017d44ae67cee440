"""What is left of a teacher's return and of its latency when it is distilled to one step.

for s in pendulum halfcheetah hopper; do
    python scripts/train.py --dataset-id qgpo/$s/mixed-v0 --run-dir runs/$s --seed 0 --threads 1
    python benchmarks/one_step.py --run runs/$s --output benchmarks/robot
done

Teacher and student play the same episodes, by deterministic and by sampled actions. Latency is CPU
time of one `predict` with one observation, and of one call of ONNX Runtime with the exported file,
the fastest of several rounds on one thread.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from clock import latency

from qgpo import QGPO, OneStepPolicy, evaluate, load_agent, load_dataset
from qgpo.agents.core.export.policy import open_session
from qgpo.agents.core.provenance import processor, versions
from qgpo.envs.play.evaluation import FIRST_SEED
from qgpo.files import write_whole


@dataclass
class Args:
    """Distil the agent of a run and compare both."""

    run: Path
    """run folder, or a checkpoint .zip, of a QGPO or AEPO agent"""
    output: Path
    """folder of one JSON per dataset"""
    n_episodes: int = 50
    """episodes of each way of acting"""
    steps: int | None = None
    """gradient steps of the distillation; default the preset's"""
    keep: Path | None = None
    """checkpoint of the student to write"""


def latencies(agent: Any, observation: np.ndarray) -> dict[str, float]:
    """Of `predict` and of the exported file, deterministic and sampled."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for deterministic, name in ((True, "deterministic"), (False, "sampled")):
            found[f"{name}_predict"] = latency(
                lambda d=deterministic: agent.predict(observation, deterministic=d)
            )
            path = agent.export_onnx(Path(folder) / name, deterministic)
            session = open_session(str(path))
            rows = observation[None].astype(np.float32)
            inputs = {
                entry.name: rows if entry.name == "observation" else np.zeros((1, entry.shape[1]))
                for entry in session.get_inputs()
            }
            inputs = {key: value.astype(np.float32) for key, value in inputs.items()}
            found[f"{name}_onnx"] = latency(lambda s=session, x=inputs: s.run(None, x))
            found[f"{name}_bytes"] = float(path.stat().st_size)
    return found


def main(args: Args) -> None:
    """Distil, play, measure, write."""
    torch.set_num_threads(1)
    teacher = load_agent(args.run, device="cpu")
    assert isinstance(teacher, QGPO)
    dataset = load_dataset(str(teacher.dataset_id))
    began = time.process_time()
    student = teacher.distill(dataset, steps=args.steps)
    seconds = time.process_time() - began
    assert isinstance(student, OneStepPolicy)
    if args.keep is not None:
        student.save(args.keep)
    returns: dict[str, list[float]] = {}
    for deterministic, how in ((True, "deterministic"), (False, "sampled")):
        for agent, who in ((teacher, "teacher"), (student, "student")):
            agent.seed_predictions(0)
            played = evaluate(
                agent, dataset, args.n_episodes, seed=FIRST_SEED, deterministic=deterministic
            )
            returns[f"{who}_{how}"] = [float(r) for r in played.returns]
            print(f"{dataset.id} {who} {how}: {np.mean(played.returns):.1f}", flush=True)
    observation = np.asarray(dataset.states[0])
    document = {
        "dataset": dataset.id,
        "fingerprint": dataset.fingerprint,
        "teacher": teacher.describe_policy(),
        "distillation_steps": student.one_step_config.distillation_steps,
        "distillation_cpu_seconds": round(seconds, 1),
        "returns": returns,
        "microseconds": {
            who: {name: round(value, 1) for name, value in latencies(agent, observation).items()}
            for who, agent in (("teacher", teacher), ("student", student))
        },
        "versions": versions(),
        "processor": processor(),
    }
    name = dataset.id.split("/")[1] + f"-s{teacher.seed}.json"
    write_whole(args.output / name, (json.dumps(document, indent=1) + "\n").encode())
    print(json.dumps(document["microseconds"]), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

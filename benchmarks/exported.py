"""How exactly exported files act like their agents, and how much faster than `predict`.

python benchmarks/exported.py --output benchmarks/robot/exported.json

Every agent and guidance has networks of its laptop preset's sizes and is trained for a moment on
the first episodes of a bundled dataset, whose own states are the observations; `--run` adds agents
that were trained in full. Differences are of actions in half the width of the action space, over
all observations in one batch and over some of them one by one. Latency is CPU time of one
observation on one thread, the fastest of several rounds.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from clock import latency

from qgpo import AEPO, QGPO, QIPO, Ensemble, load_agent, load_dataset
from qgpo.agents import AGENTS, longer
from qgpo.agents.core.export.policy import COMPARED, act_on, open_session, scale_of
from qgpo.agents.core.provenance import processor, versions
from qgpo.agents.guided.candidates import Candidates
from qgpo.files import write_whole

HERE = Path(__file__).parent
quick = partial(latency, rounds=6, seconds=0.02)
BOUND = 1e-5
SINGLE = 100
"""observations that are acted on one by one, too"""
SCALES = (0.0, 2.0)
CANDIDATES = 8
"""of agents that choose among some: the presets have 1 or 32"""
MEMBERS = ("QGPO", "AEPO", "QIPO")
"""of the ensemble"""
OF_QGPO = ("mse", "emse", "dps", "qgf")


@dataclass
class Args:
    """Compare exported files with their agents."""

    run: tuple[Path, ...] = ()
    """run folders or checkpoints of trained agents, which are compared, too"""
    dataset_id: str = "qgpo/halfcheetah/mixed-v0"
    """whose first episodes the others learn from"""
    rows: int = 1000
    """transitions that they learn from"""
    longer: float = 0.003
    """times the preset's steps"""
    observations: int = 10_000
    """in a batch"""
    only: tuple[str, ...] = ()
    """names of the agents to measure; default all"""
    output: Path = HERE / "robot" / "exported.json"
    """JSON to write; rows of other agents in it are kept"""


def configurations() -> Iterator[tuple[str, type[Any], Any]]:
    """Name, agent and configuration of everything that is trained here."""
    for name, agent in AGENTS.items():
        presets = agent.presets
        config = presets.get("laptop-support", presets["laptop"])
        few = {n: CANDIDATES for n in ("num_samples", "candidates") if hasattr(config, n)}
        yield name, agent, replace(config, **few)
    support = QGPO.presets["laptop-support"]
    for guidance in OF_QGPO:
        yield f"QGPO, {guidance}", QGPO, replace(support, guidance=guidance)
    yield "QGPO, mode", QGPO, replace(support, deterministic_action="mode")
    analytic = replace(AEPO.presets["laptop-support"], guidance="analytic")
    yield "AEPO, analytic", AEPO, analytic
    yield "QIPO, flow", QIPO, QIPO.presets["laptop-flow-support"]


def agents(args: Args) -> Iterator[tuple[str, Any, np.ndarray]]:
    """Name, trained agent, and observations (N, S)."""
    dataset = load_dataset(args.dataset_id)
    few = dataset.first(args.rows)
    states = np.asarray(dataset.states[: args.observations])
    kept = {}
    for name, agent, config in configurations():
        together = name in MEMBERS and "Ensemble" in args.only
        if args.only and name not in args.only and not together:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trained = agent(longer(config, args.longer), device="cpu").learn(few)
        kept[name] = trained
        if not args.only or name in args.only:
            yield name, trained, states
    if not args.only or "Ensemble" in args.only:
        yield "Ensemble", Ensemble([kept[name] for name in MEMBERS]), states
    for run in args.run:
        agent = load_agent(run, device="cpu")
        data = load_dataset(str(agent.dataset_id))
        name = f"{agent.name} of {str(data.id).removeprefix('qgpo/')}"
        yield name, agent, np.asarray(data.states[: args.observations])


def differences(
    agent: Any, session: Any, states: np.ndarray, scale: float | None
) -> dict[str, Any]:
    """Of the file's actions from the agent's for the same noise, at a scale."""
    width = 0.5 * (agent.action_scale.high - agent.action_scale.low)
    inputs = {"observation": states.astype(np.float32)}
    for entry in session.get_inputs():
        if entry.name == "noise":
            generator = np.random.default_rng(0)
            shape = (len(states), entry.shape[1])
            inputs["noise"] = generator.normal(size=shape).astype(np.float32)
    noisy = "noise" in inputs
    given = {name: torch.as_tensor(x) for name, x in inputs.items()}
    if scale is not None:
        inputs["guidance_scale"] = np.full(scale_of(agent).shape, scale, np.float32)
        given["guidance_scale"] = torch.as_tensor(inputs["guidance_scale"])
    parts = []
    for rows in torch.arange(len(states)).split(2000):
        of_rows = {k: v if k == "guidance_scale" else v[rows] for k, v in given.items()}
        acted = act_on(agent, of_rows, not noisy).detach().numpy()
        parts.append(agent.action_scale.to_space(acted))
    expected = np.concatenate(parts)
    (found,) = session.run(None, inputs)
    single = []
    for i in range(min(SINGLE, len(states))):
        own = {k: v if k == "guidance_scale" else v[i : i + 1] for k, v in inputs.items()}
        single.append(session.run(None, own)[0][0])
    batch = np.abs((found - expected) / width).max(axis=-1)
    one = np.abs((np.array(single) - expected[: len(single)]) / width).max(axis=-1)
    result: dict[str, Any] = {
        "largest": float(batch[batch <= BOUND].max(initial=0.0)),
        "largest_single": float(one[one <= BOUND].max(initial=0.0)),
        "beyond": int((batch > BOUND).sum()),
        "beyond_single": int((one > BOUND).sum()),
        "median": float(np.median(batch)),
        "worst": float(batch.max()),
        "mean_action": float(np.abs(found).mean()),
    }
    wrong = np.flatnonzero(batch > BOUND)
    if len(wrong) and (q := value_of(agent)) is not None:
        gap = q(states[wrong], found[wrong]) - q(states[wrong], expected[wrong])
        result["largest_gap"] = float(np.abs(gap).max())
    return result


def value_of(agent: Any) -> Any:
    """Q of actions (B, A) in states (B, S), of those that choose by it; else None."""

    @torch.no_grad()
    def q(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        s = torch.as_tensor(states, dtype=torch.float32)
        low, high = agent.action_scale.low, agent.action_scale.high
        a = torch.as_tensor(2.0 * (actions - low) / (high - low) - 1.0).float()
        if isinstance(agent, Candidates):
            condition = agent.behavior.normalizer(s)
            z = agent.behavior.whitening.encode(condition, a)
            return np.asarray(agent.critic.target(condition, z))
        critic = agent.critic if agent.name == "IFQL" else agent.critic_target
        return np.asarray(critic(agent.normalizer(s), a))

    return q if agent.name in ("BestOfN", "IFQL", "DiffusionQL") else None


def measure(agent: Any, states: np.ndarray) -> dict[str, Any]:
    """Both ways of acting."""
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for deterministic, name in ((True, "deterministic"), (False, "sampled")):
            began = time.process_time()
            path = agent.export_onnx(Path(folder) / name, deterministic)
            seconds = time.process_time() - began
            session = open_session(str(path))
            takes_scale = any(
                x.name == "guidance_scale" for x in session.get_overridable_initializers()
            )
            at = {
                "" if w is None else f"w = {w:g}": differences(agent, session, states, w)
                for w in (SCALES if takes_scale else (None,))
            }
            one = states[:1].astype(np.float32)
            inputs = {
                x.name: one if x.name == "observation" else np.zeros((1, x.shape[1]), np.float32)
                for x in session.get_inputs()
            }
            row[name] = {
                "differences": at,
                "bytes": path.stat().st_size,
                "export_seconds": round(seconds, 2),
                "predict_microseconds": round(
                    quick(lambda d=deterministic: agent.predict(states[0], deterministic=d)), 1
                ),
                "onnx_microseconds": round(quick(lambda s=session, x=inputs: s.run(None, x)), 1),
            }
    return row


def main(args: Args) -> None:
    """Measure, print, and write after each agent."""
    torch.set_num_threads(1)
    document: dict[str, Any] = {"agents": {}}
    if args.output.exists():
        document = json.loads(args.output.read_text(encoding="utf-8"))
    document |= {
        "observations": args.observations,
        "single": SINGLE,
        "compared_before_writing": sum(COMPARED),
        "versions": versions(),
        "processor": processor(),
    }
    for name, agent, states in agents(args):
        row = document["agents"][name] = measure(agent, states)
        for how, of in row.items():
            worst = max(d["largest"] for d in of["differences"].values())
            beyond = {k: d["beyond"] for k, d in of["differences"].items() if d["beyond"]}
            gaps = [d.get("largest_gap") for d in of["differences"].values() if "largest_gap" in d]
            print(
                f"{name:24s} {how:13s} {worst:.1e} beyond {beyond} {gaps} predict "
                f"{of['predict_microseconds']:.0f} us, ONNX {of['onnx_microseconds']:.0f} us",
                flush=True,
            )
        write_whole(args.output, (json.dumps(document, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

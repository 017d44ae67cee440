"""The model card of a shared agent: which data, which scores, how to use it, which licence."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from qgpo.envs.play.intervals import bootstrap_interval
from qgpo.envs.play.scores import Evaluation, scale_label
from qgpo.envs.text import with_interval

Evaluations = Sequence[tuple[float | None, Evaluation]]
"""guidance scales (None: the agent's own, if any) and what was played at them"""
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,40}")
UNKNOWN = "unknown"
"""the hub's word for a licence that nobody states"""


def check_license(name: str) -> str:
    """The hub's identifier of a licence. Raises ValueError for other text."""
    if not isinstance(name, str) or not LICENSE.fullmatch(name):
        raise ValueError(
            f"license={name!r}, expected an identifier of the hub, such as 'mit', 'apache-2.0' or "
            f"'cc-by-4.0' ({UNKNOWN!r} states none)"
        )
    return name


def model_card(
    about: dict[str, Any],
    evaluations: Evaluations,
    license: str,
    call: str,
    data_returns: Sequence[float] | None = None,
    clip: str | None = None,
) -> str:
    """The text of README.md, with the hub's metadata in front.

    `about` is what config.json says, `call` the Python that loads the agent in the example,
    `data_returns` (E,) are the returns of the data's episodes, `clip` is the name of a video.
    """
    parts = [
        _metadata(about, evaluations, license),
        f"# {_title(about)}\n\n{_introduction(about)}",
        *([f"The clip `{clip}` shows one episode, which was not selected."] if clip else []),
        f"## Data\n\n{_data(about)}",
        f"## Scores\n\n{_scores(evaluations, data_returns)}",
        f"## Use\n\n{_use(about, call)}",
        f"## Licence\n\n{_licence(license)}",
    ]
    return "\n\n".join(parts) + "\n"


def _title(about: dict[str, Any]) -> str:
    data = about["dataset"]["id"] or "data without an id"
    several = len(about["checkpoints"])
    return f"{about['agent']} on {data}" + (f", {several} agents together" if several > 1 else "")


def _introduction(about: dict[str, Any]) -> str:
    steps = max(about["environment_steps"])
    how = "from recorded data alone, without interaction"
    if steps:
        how = f"from {steps:,} steps in its environment"
        how += ", after recorded data" if about["dataset"]["fingerprint"] else ""
    text = (
        f"An agent ({about['agent']}) that learned {how}, with the package qgpo. Its files are "
        "JSON and safetensors: reading them runs no code."
    )
    if not about["is_trained"]:
        text += " **Its training did not come to its end.**"
    return text


def _data(about: dict[str, Any]) -> str:
    data = about["dataset"]
    if data["fingerprint"] is None:
        return "The agent has not learned from data."
    lines = [
        f"- dataset: `{data['id']}`",
        f"- SHA-256 of its arrays: `{data['fingerprint']}`",
        f"- environment in which the agent plays: "
        f"{'`' + data['env_id'] + '`' if data['env_id'] else 'none is named'}",
        f"- observations: {about['observations']} numbers, actions: {about['actions']} numbers",
    ]
    if (reference := data["reference"]) is not None:
        lines.append(
            f"- a normalised score of 0 is a return of {reference['minimum']:.6g}, 100 one of "
            f"{reference['maximum']:.6g} ({reference['source']})"
        )
    return "\n".join(lines)


def _scores(evaluations: Evaluations, data_returns: Sequence[float] | None) -> str:
    """A table with 95 % intervals, or that nothing was played."""
    if not evaluations:
        return "Nothing was played: no score is known."
    head = ["", "return", "95 % interval", "score", "95 % interval", "episodes"]
    rows = [head, ["---"] * len(head)]
    if data_returns is not None and len(data_returns) > 0:
        returns = np.asarray(data_returns, dtype=np.float64)
        mean, interval = with_interval(float(returns.mean()), bootstrap_interval(returns))
        rows.append(["the data", mean, interval or "-", "-", "-", str(len(returns))])
    for scale, played in evaluations:
        mean, interval = with_interval(played.mean, played.interval)
        score, of_score = ("-", "-")
        if played.score is not None:
            score, of_score = with_interval(played.score, played.score_interval)
        rows.append(
            [
                scale_label(scale),
                mean,
                interval or "-",
                score,
                of_score or "-",
                str(len(played.returns)),
            ]
        )
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    env_ids = sorted({played.env_id for _, played in evaluations})
    by_success = any(played.successes is not None for _, played in evaluations)
    said = "percent of the episodes that succeeded" if by_success else "normalised return"
    return (
        f"{table}\n\nPlayed in {', '.join(f'`{name}`' for name in env_ids)}. The score is the "
        f"{said}. The raw returns are in `evaluation.json`. Intervals are over episodes of one "
        "training, not over trainings."
    )


def _use(about: dict[str, Any], call: str) -> str:
    lines = [f"from qgpo import evaluate, {call.partition('(')[0]}", "", f"agent = {call}"]
    if about.get("window") is None:
        lines.append("action, _ = agent.predict(observation, deterministic=True)")
    else:
        lines.append("state = None  # at the start of an episode")
        lines.append("action, state = agent.predict(observation, state, deterministic=True)")
    if env_id := about["dataset"]["env_id"]:
        lines.append(f"print(evaluate(agent, {json.dumps(env_id)}, n_episodes=10))")
    text = "```python\n" + "\n".join(lines) + "\n```"
    scales = [scale for scale in about["guidance_scales"] if scale is not None]
    if scales:
        shown = ", ".join(f"{scale:g}" for scale in dict.fromkeys(scales))
        text += f"\n\n`agent.guidance_scale` is {shown}"
        text += " (of each member)." if len(set(scales)) > 1 else "."
        text += (
            " The student was trained at it, and it cannot be changed."
            if about["fixed_scale"]
            else " It may be changed: 0 imitates the data."
        )
    return text


def _licence(license: str) -> str:
    if license == UNKNOWN:
        return "No licence is stated: ask the author before you use it."
    return f"`{license}`"


def _metadata(about: dict[str, Any], evaluations: Evaluations, license: str) -> str:
    """YAML, in which every text is quoted as JSON quotes it."""
    env_id = about["dataset"]["env_id"]
    tags = ["reinforcement-learning", "offline-reinforcement-learning", about["agent"]]
    fields: dict[str, Any] = {
        "library_name": "qgpo",
        "license": license,
        "pipeline_tag": "reinforcement-learning",
        "tags": [*tags, *([env_id] if env_id else [])],
    }
    results = [
        {
            "task": {"type": "reinforcement-learning", "name": "offline reinforcement learning"},
            "dataset": {"type": played.env_id, "name": played.env_id},
            "metrics": [
                {
                    "type": "mean_reward",
                    "name": f"mean return, {scale_label(scale)}",
                    "value": " ".join(with_interval(played.mean, played.interval)).rstrip(),
                    "verified": False,
                }
            ],
        }
        for scale, played in evaluations
    ]
    if results:
        fields["model-index"] = [{"name": _title(about), "results": results}]
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])

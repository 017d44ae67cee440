"""Bad input of benchmark plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cases import Case

from qgpo.experiments.plan import PlanError, read_plan

PLAN = """
datasets = ["test/made/by-hand-v0"]
seeds = [0, 1]
n_episodes = 2

[[agents]]
label = "first"
agent = "QGPO"
guidance_scales = [0, 1, 2]
overrides = { beta = 2.0 }
estimate_minutes = 3
"""
SECOND = """
[[agents]]
label = "second"
agent = "QGPO"
overrides = { guidance = "mse" }
adopt = "first"
"""
OF = "plan 'plan.toml': agent 'first': "
DONOR = "plan 'plan.toml': agent 'second': adopt="


def plan(old: str, new: str) -> Callable[[], Any]:
    """Read the plan with one thing changed."""
    text = PLAN + SECOND
    assert old in text

    def provoke() -> None:
        Path("plan.toml").write_text(text.replace(old, new, 1))
        read_plan(Path("plan.toml"))

    return provoke


def refused(what: str, old: str, new: str, message: str) -> Case:
    return Case("benchmark plan", what, PlanError, message, plan(old, new))


def key(what: str, line: str, message: str) -> Case:
    """A line more, or in place of the estimate."""
    return refused(what, "estimate_minutes = 3", line, f"{OF}{message}")


CASES = [
    Case(
        "benchmark plan",
        "no such file",
        PlanError,
        "plan 'gone.toml' cannot be read: …No such file or directory…",
        lambda: read_plan(Path("gone.toml")),
    ),
    refused("a file that is not TOML", "seeds", "seeds = ", "plan 'plan.toml' cannot be read: …"),
    refused(
        "agents that are not a list",
        "[[agents]]",
        "[agents]",
        "plan 'plan.toml' cannot be read: …",
    ),
    refused(
        "deeply nested lists",
        "seeds = [0, 1]",
        "seeds = " + "[" * 20_000,
        "plan 'plan.toml' cannot be read: plan.toml is not TOML: …",
    ),
    refused(
        "a key of thousands of parts",
        "seeds = [0, 1]",
        "seeds." * 20_000 + "a = 1",
        "plan 'plan.toml' cannot be read: plan.toml has a key of more than 32 parts in line …",
    ),
    refused(
        "too many cells",
        "seeds = [0, 1]",
        f"seeds = {list(range(20_000))}",
        f"{OF}1 datasets and 20000 seeds, expected at most 10000 cells",
    ),
    Case(
        "benchmark plan",
        "no agents",
        PlanError,
        "plan 'plan.toml': no agents: at least one [[agents]] table is needed",
        plan(PLAN[PLAN.index("[[agents]]") :] + SECOND, ""),
    ),
    refused(
        "an agent without a class",
        'agent = "QGPO"\nguidance',
        "guidance",
        f"{OF}it has no key 'agent', the name of its class",
    ),
    refused(
        "an unknown key",
        "n_episodes",
        "episodes",
        f"{OF}unknown key 'episodes', expected one of […'n_episodes'…]",
    ),
    refused(
        "a negative seed",
        "[0, 1]",
        "[0, -1]",
        f"{OF}seed=-1, expected an integer of at least 0 and below 2**63",
    ),
    refused(
        "no seeds",
        "seeds = [0, 1]",
        "",
        f"{OF}seeds=None, expected a list of integers of at least 0",
    ),
    refused(
        "datasets that are not a list",
        '["test/made/by-hand-v0"]',
        '"all"',
        f"{OF}datasets='all', expected a list of Minari ids",
    ),
    refused(
        "no episodes",
        "n_episodes = 2",
        "n_episodes = 0",
        f"{OF}n_episodes=0, expected an integer of at least 1",
    ),
    refused(
        "guidance scales without the configured scale",
        "[0, 1, 2]",
        "[0, 2]",
        f"{OF}guidance_scales=[0, 2] lacks the configured scale 1, which is the main result; "
        "add it, or set overrides = { guidance_scale = ... }",
    ),
    refused(
        "guidance scales that are text",
        "[0, 1, 2]",
        "[0, 'x']",
        f"{OF}guidance_scales='x', expected a finite number of at least 0",
    ),
    refused(
        "guidance scales that are a boolean",
        "[0, 1, 2]",
        "[0, true]",
        f"{OF}guidance_scales=True, expected a finite number of at least 0",
    ),
    refused(
        "guidance scales for an agent without guidance",
        'agent = "QGPO"\nguidance_scales = [0, 1, 2]\noverrides = { beta = 2.0 }',
        'agent = "BC"\nguidance_scales = [0, 1, 2]',
        f"{OF}guidance_scales=(0, 1, 2): a BC agent has no guidance_scale",
    ),
    refused("an unknown agent", '"QGPO"', '"QGPS"', f"{OF}agent='QGPS', expected one of […]"),
    refused("an agent that is not a name", '"QGPO"', "5", f"{OF}agent=5, expected a string"),
    refused(
        "a label of two lines",
        'label = "second"',
        'label = "two\\nlines"',
        "plan 'plan.toml': agent 'two\\nlines': label='two\\nlines', expected a line of 1 to 60 "
        "printable characters",
    ),
    refused(
        "labels that differ in case",
        'label = "second"',
        'label = "First"',
        "plan 'plan.toml': …-First-s0 and …-first-s0 are the same name on file systems that "
        "ignore case: give the agents different labels",
    ),
    key(
        "an unknown preset", 'preset = "huge"', "preset='huge', expected one of […] or a QGPOConfig"
    ),
    refused(
        "an unknown hyperparameter",
        "beta =",
        "betas =",
        f"{OF}overrides has 'betas', expected a table of some of […]",
    ),
    refused(
        "a hyperparameter out of range",
        "beta = 2.0",
        "beta = -2.0",
        f"{OF}beta=-2.0, expected in [0, 1e+09]",
    ),
    refused(
        "overrides that are not a table",
        "{ beta = 2.0 }",
        "[1]",
        f"{OF}overrides has [1], expected a table of some of […]",
    ),
    key(
        "an unknown storage",
        'storage = "tape"',
        "storage='tape', expected one of ['memory', 'memmap']",
    ),
    key(
        "a boolean in words",
        'deterministic = "no"',
        "deterministic='no', expected true or false",
    ),
    key(
        "a boolean as share of a GPU",
        "gpus = true",
        "gpus=True, expected a finite number of at least 0",
    ),
    key(
        "more threads than a system has",
        f"threads = {10**30}",
        f"threads={10**30}, expected an integer of at least 0 and at most 1024",
    ),
    key(
        "a share of a GPU that is too large",
        f"gpus = {10**400}",
        "gpus=1000…, expected a finite number of at least 0 and at most 1e+18",
    ),
    key(
        "a negative share of a GPU",
        "gpus = -0.5",
        "gpus=-0.5, expected a finite number of at least 0",
    ),
    key(
        "an estimate that is not a number",
        "estimate_minutes = nan",
        "estimate_minutes=nan, expected a finite number of at least 0",
    ),
    key(
        "an estimate in words",
        'estimate_minutes = "few"',
        "estimate_minutes='few', expected a finite number of at least 0",
    ),
    key("a device that is not a name", "device = 0", "device=0, expected a string"),
    key("an environment that is not an id", "env_id = 5", "env_id=5, expected a string"),
    refused(
        "a label that occurs twice",
        SECOND,
        PLAN[PLAN.index("[[agents]]") :],
        "plan 'plan.toml': test-made-by-hand-v0-first-s0 occurs twice: give the agents "
        "different labels",
    ),
    refused(
        "adopting from an unknown label",
        'adopt = "first"',
        'adopt = "other"',
        f"{DONOR}'other', expected the label of an earlier agent, one of ['first']",
    ),
    refused(
        "adopting from itself",
        'adopt = "first"',
        'adopt = "second"',
        f"{DONOR}'second', expected the label of an earlier agent, one of ['first']",
    ),
    refused(
        "adopting from a cell that does not exist",
        'adopt = "first"',
        'adopt = "first"\nseeds = [2]',
        f"{DONOR}'first' has no cell of dataset 'test/made/by-hand-v0' and seed 2: give both "
        "agents the same datasets and seeds",
    ),
    refused(
        "adopting another behavior",
        'guidance = "mse"',
        'guidance = "mse", ema_decay = 0.5',
        f"{DONOR}'first' has ema_decay = 0.999 and this agent 0.5, which determines the "
        "behavior: use the same value for both, or remove adopt",
    ),
    refused(
        "adopting from a task on other data",
        'adopt = "first"',
        'adopt = "first"\nadopt_dataset = "ogbench/cube-single-play-singletask-v0"',
        "plan 'plan.toml': agent 'second': "
        "adopt_dataset='ogbench/cube-single-play-singletask-v0' for dataset "
        "'test/made/by-hand-v0', expected another OGBench task on the same trajectories, "
        "together with adopt, the label of an agent",
    ),
    refused(
        "adopting by an agent outside the family",
        'agent = "QGPO"\noverrides = { guidance = "mse" }',
        'agent = "BC"',
        f"{DONOR}'first': a BC shares no stages, expected QGPO, AEPO, QIPO, SIR or BestOfN",
    ),
]

"""Files of earlier versions as this one writes them: checkpoints' headers, and configurations.

Version 6: QGPO may rehearse in a model of the environment.
Version 5: the guided family says how many heads a stacked critic has.
Version 4: the general model says how many components its mixtures have.
Version 3: the guided family says which critic it has.
Version 2: every field of a configuration is written; options of a guidance are in
`guidance_options`.
Version 1 lacked fields that came later; what they say now was done then.
"""

from __future__ import annotations

from typing import Any

FORMAT_VERSION = 6

GUIDED_1: dict[str, Any] = {"sparsity_power": 0.0}
QGPO_1: dict[str, Any] = {
    **GUIDED_1,
    "critic_activation": "relu",
    "critic_baseline": False,
    "critic_value": "softmax",
    "deterministic_action": "ode",
    "expectile": 0.7,
    "guidance_bound": None,
    "tilt_limit": None,
    "trust_power": 0.0,
}
ADDED_SINCE_1: dict[str, dict[str, Any]] = {
    "QGPO": {**QGPO_1, "guidance": "cep"},
    "AEPO": {**QGPO_1, "guidance": "aepo"},
    "QIPO": GUIDED_1,
}
GUIDED_2: dict[str, Any] = {"critic": "support", "implicit_actions": 0}
ADDED_SINCE_2 = dict.fromkeys(ADDED_SINCE_1, GUIDED_2)
ADDED_SINCE_3: dict[str, dict[str, Any]] = {"EnergyGuidedDiffusion": {"components": 0}}
GUIDED_4: dict[str, Any] = {"critic_heads": 1}
ADDED_SINCE_4 = dict.fromkeys(("QGPO", "AEPO", "QIPO", "SIR", "BestOfN"), GUIDED_4)
GUIDED_5: dict[str, Any] = {"dynamics_steps": 0}
REHEARSING = ("QGPO", "AEPO", "OneStepPolicy")
ADDED_SINCE_5: dict[str, dict[str, Any]] = dict.fromkeys(REHEARSING, GUIDED_5)
ANALYTIC_1: dict[str, Any] = {
    "analytic_order": 1,
    "analytic_covariance": "residual",
    "analytic_gradient": "autograd",
    "analytic_damped": True,
}
OPTIONS_1: dict[str, dict[str, Any]] = {
    "cep": {"cep_labels": "normalized"},
    "dps": {"clamp": None},
    "analytic": {**ANALYTIC_1, "clamp": None},
    "aepo": {**ANALYTIC_1, "clamp": None},
}
"""fields of version 1 that were options of one guidance, with their defaults"""


def upgrade(header: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's header in today's version. Raises LookupError where parts are missing."""
    if header["format_version"] >= FORMAT_VERSION:
        return header
    config = upgrade_config(header["agent"], header["config"], header["format_version"])
    counted = {"stage": None, "num_timesteps": sum(header["progress"].values())}
    new = {"dynamics": 0} if header["agent"] in REHEARSING else {}
    changed = {"config": config, "progress": {**header["progress"], **new}}
    return {**counted, **header, **changed, "format_version": FORMAT_VERSION}


def upgrade_config(agent: str, config: dict[str, Any], version: int) -> dict[str, Any]:
    """The fields of an agent's configuration, in today's version."""
    if version >= FORMAT_VERSION:
        return config
    config = {**ADDED_SINCE_5.get(agent, {}), **config}
    if version >= 5:
        return config
    config = {**ADDED_SINCE_4.get(agent, {}), **config}
    if version >= 4:
        return config
    config = {**ADDED_SINCE_3.get(agent, {}), **config}
    if version >= 3:
        return config
    config = {**ADDED_SINCE_2.get(agent, {}), **config}
    if version >= 2:
        return config
    config = {**ADDED_SINCE_1.get(agent, {}), **config}
    if "guidance" not in config:
        return config
    options = dict(config.get("guidance_options", {}))
    for name, default in OPTIONS_1.get(config["guidance"], {}).items():
        if config.get(name, default) != default:
            options[name.removeprefix("analytic_").removeprefix("cep_")] = config[name]
    gone = {name for names in OPTIONS_1.values() for name in names}
    kept = {name: value for name, value in config.items() if name not in gone}
    return {**kept, "guidance_options": options}

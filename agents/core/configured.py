"""Configured: what an agent is made of, as a preset's name, a configuration, or fields by name."""

from __future__ import annotations

import difflib
from dataclasses import fields, replace
from typing import Any, ClassVar, Generic, TypeVar, cast

from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.store.opening import recorded_in
from qgpo.envs.tasks.families import family_settings, find_family

ConfigT = TypeVar("ConfigT")


class Configured(Generic[ConfigT]):
    """Has a configuration, which does not change once it is built.

    With a preset's name as `config`, the family of a dataset may change fields of that preset
    (`settings_for`); a configuration is taken as it is. `settings` are fields that have other
    values, whatever the preset and the family say. Raises TypeError for names that are no fields,
    and ValueError for values out of range.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[Any]]
    presets: ClassVar[dict[str, Any]]
    rate_field: ClassVar[str] = "learning_rate"
    """the field of the configuration that is the agent's `learning_rate`"""

    def __init__(self, config: ConfigT | str, settings: dict[str, Any]) -> None:
        self._config: ConfigT = self.choose_config(config)
        self._preset = config if isinstance(config, str) else None
        self._row = self.config
        self._changes: dict[str, Any] = {}
        if settings:
            self._change(**self._checked(settings))

    @property
    def config(self) -> ConfigT:
        """What the agent is made of; another configuration needs a new agent."""
        return self._config

    @config.setter
    def config(self, _: object) -> None:
        raise AttributeError(
            "config cannot be changed, because networks and files depend on it; make a new "
            f"agent, {self.name}(config), with dataclasses.replace(agent.config, …)"
        )

    @property
    def learning_rate(self) -> float:
        """First Adam step size of the policy (of the behavior where stages have their own)."""
        return float(getattr(self.config, self.rate_field))

    @classmethod
    def choose_config(cls, config: ConfigT | str) -> ConfigT:
        """The configuration, or the preset of that name."""
        if isinstance(config, str):
            if config not in cls.presets:
                hint = ", not a policy class" if config.endswith("Policy") else ""
                raise ValueError(
                    f"preset={config!r}, expected one of {sorted(cls.presets)} or a "
                    f"{cls.config_class.__name__}{hint}"
                )
            config = cast(ConfigT, cls.presets[config])
        if not isinstance(config, cls.config_class) or _names(config) != cls.setting_names():
            raise TypeError(
                f"config is a {type(config).__name__}, expected a preset's name "
                f"{sorted(cls.presets)} or a {cls.config_class.__name__}"
            )
        return cast(ConfigT, config)

    @classmethod
    def settings_for(cls, dataset: OfflineDataset | str, preset: str = "laptop") -> ConfigT:
        """The preset with what the dataset's family changes of it.

        Python, the command line and plans take their configurations from here. Of an id, the
        family follows from the id and the environment that the local dataset names.
        """
        row = cls.choose_config(preset)
        if isinstance(dataset, OfflineDataset):
            family = find_family(dataset.id, dataset.env_spec.id if dataset.env_spec else None)
        else:
            family = find_family(dataset, recorded_in(dataset))
        return replace(row, **family_settings(family, preset, cls.setting_names()))  # type: ignore[type-var]

    @classmethod
    def setting_names(cls) -> set[str]:
        """The fields of the configuration."""
        return _names(cls.config_class)

    @classmethod
    def by_field(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """The same, with `learning_rate` by the name of its field."""
        return {cls.rate_field if k == "learning_rate" else k: v for k, v in settings.items()}

    @classmethod
    def _checked(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings by the names of fields. Raises TypeError for other names."""
        named, known = cls.by_field(settings), cls.setting_names()
        for name in named.keys() - known:
            near = difflib.get_close_matches(name, sorted(known), 4)
            raise TypeError(
                f"{cls.name} has no setting {name!r}"
                + (f" (nearest: {', '.join(near)})" if near else "")
                + f". The fields of {cls.config_class.__name__} are {', '.join(sorted(known))}"
            )
        return named

    def _change(self, **values: Any) -> None:
        """Set fields of the configuration whatever the dataset's family says."""
        self._changes |= values
        self._config = self._row = replace(self.config, **values)  # type: ignore[type-var]

    def _settle(self, dataset: OfflineDataset) -> None:
        """Apply the family's settings, if the configuration is still that of a preset's name."""
        if self._preset is not None and self.config is self._row:
            settings = self.settings_for(dataset, self._preset)
            self._config = self._row = replace(settings, **self._changes)  # type: ignore[type-var]


def _names(config: Any) -> set[str]:
    return {field.name for field in fields(config)}

"""What a dataset's `metadata.json` states, read so that an odd one is refused by its reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qgpo.envs.text_files import LARGEST, read_json


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool | str) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("dataset_id", "minari_version", "data_format", "algorithm_name", "description"),
        ("a text", _is_text),
    ),
    **dict.fromkeys(
        ("code_permalink", "observation_space", "action_space", "env_spec", "eval_env_spec"),
        ("a text", _is_text),
    ),
    **dict.fromkeys(("total_steps", "total_episodes"), ("a number of them", _is_count)),
    **dict.fromkeys(
        ("dataset_size", "ref_min_score", "ref_max_score", "num_episodes_average_score"),
        ("a finite number", _is_finite),
    ),
    **dict.fromkeys(("author", "author_email", "requirements"), ("a list of texts", _are_texts)),
    "jpeg_encoding": ("true or false", _is_flag),
    "ogbench": ("an object", _is_object),
}
"""what each field that is read must be, where it is there and not null"""


def read_metadata(data: Path) -> dict[str, Any]:
    """The metadata in a dataset's `data` folder.

    Raises FileNotFoundError without such a file, and ValueError, which says what is odd.
    """
    path = data / "metadata.json"
    try:
        return check_metadata(read_json(path, LARGEST, strict=False))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"No data found in data path {data}") from error


def check_metadata(metadata: Any) -> dict[str, Any]:
    """The metadata, whose known fields have the types that Minari writes. ValueError if not."""
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata are a {type(metadata).__name__}, expected an object")
    stated: dict[str, Any] = {
        name: [value] if name in ("author", "author_email") and isinstance(value, str) else value
        for name, value in metadata.items()
    }
    for name, (expected, is_right) in FIELDS.items():
        value = stated.get(name)
        if value is not None and not is_right(value):
            raise ValueError(f"metadata have {name} = {value!a:.60}, expected {expected}")
    return stated

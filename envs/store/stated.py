"""What a dataset's `metadata.json` states, read so that an odd one is refused by its reason."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGEST = 64 * 2**20
"""bytes; spaces with many dimensions take some megabytes"""


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
}
"""what each field that is read must be, where it is there and not null"""


def read_metadata(data: Path) -> dict[str, Any]:
    """The metadata in a dataset's `data` folder.

    Raises FileNotFoundError without such a file, and ValueError, which says what is odd.
    """
    path = data / "metadata.json"
    try:
        return check_metadata(read_json(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"No data found in data path {data}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file: a regular one, not too large.

    Raises FileNotFoundError where there is none, and ValueError, which says what is odd.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # reading a pipe would wait for ever
            raise ValueError(f"{path.name} is no regular file")
        if about.st_size > LARGEST:
            raise ValueError(f"{path.name} has {about.st_size} bytes, at most {LARGEST}")
        return json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error


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

"""JSON files from outside, read so that an odd one is refused by its reason."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

LARGEST = 64 * 2**20
"""bytes; spaces with many dimensions take some megabytes"""


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

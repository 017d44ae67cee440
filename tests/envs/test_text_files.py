from __future__ import annotations

import os
import re

import pytest

from qgpo.envs.text_files import read_json, read_toml


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(10**12)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes and devices are POSIX's")
@pytest.mark.parametrize("read", [read_json, read_toml])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fifo, "not a regular file"),
        (device, "not a regular file"),
        (sparse, "more than 1000 bytes"),
        (os.mkdir, "not a regular file"),
    ],
)
def test_what_has_no_end_is_not_read(make, message, read, tmp_path):
    make(tmp_path / "odd")
    with pytest.raises(ValueError, match=f"odd (is|has) {message}"):
        read(tmp_path / "odd", 1000)


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_json, b"[" * 100_000, "is not JSON"),
        (read_json, b'{"a":' * 100_000, "is not JSON"),
        (read_json, b"1" * 5000, "is not JSON"),
        (read_json, b"\xff{}", "is not UTF-8"),
        (read_json, b'[{"a": 1, "b": 2, "a": 3}]', "has the name 'a' twice"),
        (read_json, b'{"a": {"b": NaN}}', "NaN is not a number"),
        (read_toml, b"a = " + b"[" * 50_000, "is not TOML"),
        (read_toml, b"a = " + b"{b=" * 50_000, "is not TOML"),
        (read_toml, b"a = " + b"1" * 5000, "is not TOML"),
        (read_toml, b"\xff", "is not UTF-8"),
        (read_toml, b"\n" + b"a." * 50_000 + b"a = 1", "more than 32 parts in line 2"),
        (read_toml, b'["\\"" . ' + b"'b c' . " * 50_000 + b"a]", "more than 32 parts in line 1"),
        (read_toml, b"a = { b = 1, " + b"a . " * 50_000 + b"a = 1 }", "more than 32 parts"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, bytes) else None,
)
def test_odd_content_is_refused_with_the_files_name(read, content, message, tmp_path):
    path = tmp_path / "odd"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="^odd .*" + re.escape(message)):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent")


def test_what_is_in_order_is_read(tmp_path):
    path = tmp_path / "good"
    path.write_bytes(b'{"a": [1, Infinity, "\xc3\xa9"]}')
    assert read_json(path) == {"a": [1, float("inf"), "é"]}
    path.write_bytes(b'a.b."c d" = 0.5  # ' + b"a.b. " * 8)
    assert read_toml(path) == {"a": {"b": {"c d": 0.5}}}

"""Which folders are packages: `qgpo`, and every other room as `qgpo.<room>`, found by rule.

A room is a top-level folder with an `__init__.py`.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))

setup(
    package_dir={room if room == "qgpo" else f"qgpo.{room}": room for room in ROOMS},
    packages=[
        name if name.split(".")[0] == "qgpo" else f"qgpo.{name}"
        for room in ROOMS
        for name in find_packages(str(ROOT), include=[room, f"{room}.*"])
    ],
)

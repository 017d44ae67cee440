"""Which folders are packages: `qgpo`, and every other room as `qgpo.<room>`, found by rule."""

from setuptools import find_packages, setup

ROOMS = ("agents", "envs", "experiments", "scripts")

rooms = find_packages(include=[name for room in ROOMS for name in (room, f"{room}.*")])
setup(
    packages=[*find_packages(include=["qgpo", "qgpo.*"]), *(f"qgpo.{room}" for room in rooms)],
    package_dir={"qgpo": "qgpo", **{f"qgpo.{room}": room for room in ROOMS}},
)

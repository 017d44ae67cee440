"""Bad input of exports, and of policies of one step."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from cases import CLI, LEARN, Case, agent, saved
from factory import ONE_STEP, PAPER_LIKE, make_dataset

from qgpo import BC, QGPO, OneStepPolicy
from qgpo.scripts import export as export_script

EXPORT = "export_onnx"


def without_the_extra() -> None:
    real = importlib.import_module

    def missing(name: str, *more: Any) -> Any:
        if name == "onnx":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib, "import_module", missing)
        agent().export_onnx("policy")


def over_another() -> None:
    Path("policy.onnx").write_bytes(b"another")
    agent().export_onnx("policy.onnx")


def in_a_file() -> None:
    Path("file").write_bytes(b"")
    agent().export_onnx("file/policy.onnx")


def a_folder() -> None:
    Path("folder").mkdir()
    agent().export_onnx("folder")


def export(*argv: str) -> Any:
    def provoke() -> None:
        saved()
        args = export_script.tyro.cli(export_script.Args, args=["--run", "agent.zip", *argv])
        export_script.main(args)

    return provoke


def of_another_scale() -> None:
    student = OneStepPolicy(ONE_STEP, device="cpu")
    student.guidance_scale = 2.0


CASES = [
    Case(
        EXPORT,
        "no path",
        TypeError,
        "path is a int, expected a path",
        lambda: agent().export_onnx(3),  # type: ignore[arg-type]
    ),
    Case(
        EXPORT,
        "a path without a name",
        ValueError,
        "path='' names no file, expected one such as 'policy.onnx'",
        lambda: agent().export_onnx(""),
    ),
    Case(
        EXPORT,
        "a folder",
        ValueError,
        "folder is a folder, expected a file name such as 'policy.onnx'",
        a_folder,
    ),
    Case(
        EXPORT,
        "a file that exists",
        ValueError,
        "policy.onnx exists: choose another name, or replace it with overwrite=True",
        over_another,
    ),
    Case(
        EXPORT,
        "a place that cannot be written",
        FileExistsError,
        "[Errno 17] File exists: …",
        in_a_file,
    ),
    Case(
        EXPORT,
        "before training",
        RuntimeError,
        "this QGPO is not trained to the end, and so cannot be exported: call learn(dataset), or "
        "load a file",
        lambda: QGPO(PAPER_LIKE, device="cpu").export_onnx("policy"),
    ),
    Case(
        EXPORT,
        "without the extra",
        ModuleNotFoundError,
        "exporting needs onnx, of the extra 'onnx': pip install 'qgpo[onnx]'",
        without_the_extra,
    ),
    Case(
        EXPORT,
        "a flag that is none",
        ValueError,
        "deterministic='yes', expected …",
        lambda: agent().export_onnx("policy", deterministic="yes"),  # type: ignore[arg-type]
    ),
    Case(
        LEARN,
        "distilling an agent that is not trained",
        RuntimeError,
        "this QGPO is not trained to the end: call learn(dataset)",
        lambda: QGPO(PAPER_LIKE, device="cpu").distill(make_dataset()),
    ),
    Case(
        LEARN,
        "distilling with other data",
        ValueError,
        "cannot distil this QGPO: it was trained on 'test/made/by-hand-v0' with fingerprint …, "
        "dataset 'test/made/by-hand-v0' has …; distil it with the data that it learned from",
        lambda: agent().distill(make_dataset(seed=1)),
    ),
    Case(
        LEARN,
        "a teacher that is not guided",
        TypeError,
        "cannot distil a BC, expected a QGPO or AEPO agent",
        lambda: OneStepPolicy(device="cpu").adopt(BC(device="cpu"), make_dataset()),
    ),
    Case(
        LEARN,
        "another scale for a student",
        ValueError,
        "guidance_scale=2.0, expected 1, at which this OneStepPolicy was distilled; set the "
        "teacher's, and distil again",
        of_another_scale,
    ),
    Case(
        CLI,
        "export: a file that exists",
        SystemExit,
        "error: agent.zip.onnx exists: choose another name, or replace it with --overwrite",
        lambda: (Path("agent.zip.onnx").touch(), export("--output", "agent.zip")()),
    ),
    Case(
        CLI,
        "export: no run there",
        SystemExit,
        "error: --run nowhere: does not exist; runs under runs: none",
        lambda: export_script.main(export_script.Args((Path("nowhere"),))),
    ),
]

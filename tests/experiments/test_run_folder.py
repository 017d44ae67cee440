"""Only what a run wrote is removed, and a run is never mixed with another one."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path

import pytest

from qgpo import PRESETS
from qgpo.experiments import documents, folder
from qgpo.experiments.documents import DocumentError
from qgpo.experiments.folder import RunFolder, RunFolderError
from qgpo.experiments.preflight import check_new

RUN = {
    "args": {
        "dataset_id": "test/a-v0",
        "agent": "QGPO",
        "preset": "laptop",
        "seed": 0,
        "config": PRESETS["laptop"].__dict__,
        "guidance_scales": [],
    }
}
EVALUATED = {"evaluations": [{"guidance_scale": None, "returns": [1.0]}]}
OWN = [
    "config.json",
    "checkpoint.zip",
    "metrics.csv",
    "clock.json",
    "evaluation.json",
    "evaluation-2.json",
    "evaluation-unfinished.json",
    "evaluation-20260101-120000.json",
    "evaluation-together-20260101-120000-3.json",
    "report.png",
    "events.out.tfevents.1700000000.host.12.0",
]
FOREIGN = [
    ".git/HEAD",
    "notes.txt",
    "evaluation-mine.json",
    "evaluation-2024.json",
    "evaluation-20240101-000000.json",
    "checkpoint.zip.bak",
    "wandb/offline-run-1/run.wandb",
    "inner/config.json",
    "inner/checkpoint.zip",
    "log.txt",
    ".notes.tmp",
]


def fill(path: Path, names: list[str]) -> None:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(RUN) if name.endswith("config.json") else name
        text = json.dumps(EVALUATED) if name in OWN and name.startswith("evaluation") else text
        (path / name).write_text(text)


def content(path: Path) -> dict[str, bytes]:
    files = (p for p in path.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


@pytest.mark.parametrize("linked", [False, True])
def test_only_what_a_run_wrote_is_removed(linked, tmp_path):
    fill(tmp_path / "run", [*OWN, *FOREIGN])
    elsewhere = tmp_path / "elsewhere"
    fill(elsewhere, ["config.json", "data.txt"])
    (tmp_path / "run" / "linked").symlink_to(elsewhere)
    path = tmp_path / "run"
    if linked:
        path = tmp_path / "link"
        path.symlink_to("run")
    run = RunFolder(path)
    check_new(run, overwrite=True)
    with run.locked():
        kept = run.clear()
    tops = {name.split("/")[0] for name in FOREIGN}
    assert kept == sorted([*tops, "linked"])
    assert {p.name for p in path.iterdir()} == {*kept, ".lock"}
    assert set(content(tmp_path / "run")) >= set(FOREIGN)
    assert set(content(elsewhere)) == {"config.json", "data.txt"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["config.json", ".git/HEAD"], "{}"),
        (["config.json", "model.safetensors"], '{"architectures": ["Bert"], "seed": 3}'),
        (["config.json"], "[1]"),
        (["config.json"], ""),
        (["config.json"], json.dumps({"args": {**RUN["args"], "agent": "Bert"}})),
        (["config.json"], json.dumps({"args": {**RUN["args"], "config": {"layers": 1}}})),
        (["checkpoint.zip"], None),
        (["metrics.csv", "notes.txt"], None),
        (["evaluation.json"], None),
    ],
)
def test_what_is_no_run_folder_is_refused_and_stays(names, text, overwrite, tmp_path):
    fill(tmp_path, names)
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    before = content(tmp_path)
    with pytest.raises(ValueError, match="choose another --run-dir"):
        check_new(RunFolder(tmp_path), overwrite)
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["checkpoint.zip", "report.png", "events.out.tfevents.1.a"])
@pytest.mark.parametrize("kind", ["link", "dangling", "folder"])
def test_a_link_or_folder_under_a_name_of_a_run_is_refused_and_nothing_deleted(
    name, kind, tmp_path
):
    path = tmp_path / "run"
    fill(path, ["config.json", "metrics.csv"])
    fill(tmp_path, ["precious"])
    if kind == "folder":
        fill(path / name, ["inside"])
    else:
        (path / name).symlink_to(tmp_path / ("precious" if kind == "link" else "gone"))
    before = content(tmp_path)
    for act in (lambda: check_new(RunFolder(path), overwrite=True), RunFolder(path).clear):
        with pytest.raises(RunFolderError, match=name):
            act()
    assert content(tmp_path) == before


def test_a_folder_with_other_files_only_may_become_a_run_folder(tmp_path):
    fill(tmp_path, ["notes.txt", ".git/HEAD"])
    check_new(RunFolder(tmp_path), overwrite=False)
    check_new(RunFolder(tmp_path / "new"), overwrite=True)


def test_a_killed_writer_of_somebody_else_is_left_alone(tmp_path):
    names = [".config.json.12.tmp", ".evaluation-mine.json.5-0123abcd.tmp", ".x.tmp"]
    fill(tmp_path, [*names, ".checkpoint.zip.5-0123abcd.tmp", ".trial.zip"])
    with RunFolder(tmp_path).locked():
        left = {p.name for p in tmp_path.iterdir()}
    assert left == {".lock", *names[1:]}


def test_whoever_asks_keeps_nobody_from_training(tmp_path, monkeypatch):
    """Even where the question takes longer than the patience of who wants to train."""
    monkeypatch.setattr(folder, "PATIENCE_SECONDS", 0.02)
    run = RunFolder(tmp_path)
    with run.locked():
        assert RunFolder(tmp_path).is_locked
    with open(tmp_path / ".lock", "rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        timer = threading.Timer(0.2, lambda: fcntl.flock(asking, fcntl.LOCK_UN))
        timer.start()
        assert not RunFolder(tmp_path).is_locked  # nor does one who asks take another for a holder
        with run.locked():
            assert RunFolder(tmp_path).is_locked
        timer.join()
    assert not run.is_locked


HEADER = "time/stage,time/stage_steps,critic/loss\n"


@pytest.mark.parametrize(
    "tail", ["\0" * 200_000, 'critic,9,"' + "y" * 140_000, "critic,\u00b2,1\n"]
)
def test_rows_that_are_none_are_left_out(tail, tmp_path):
    run, row = RunFolder(tmp_path), "critic,1,0.5\n"
    run.metrics.write_text(HEADER + row + tail, encoding="utf-8")
    folder.ContinuedCSV(run.metrics, {"critic": 3}).close()
    assert run.metrics.read_text() == HEADER + row


def test_metrics_that_are_no_text_are_refused_by_name(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics.write_bytes(HEADER.encode() + b"\xff\xfe\n")
    with pytest.raises(RunFolderError, match=r"metrics\.csv cannot be read .* move it away"):
        folder.ContinuedCSV(run.metrics, {})


@pytest.mark.parametrize("name", ["metrics.csv", "clock.json", "log.txt", "report.png"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_by_name(name, make, tmp_path):
    make(tmp_path / name)
    with pytest.raises(RunFolderError, match=f"{name} is not a file"), RunFolder(tmp_path).locked():
        pass


def test_who_waits_gets_the_folder_when_it_is_free(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folder, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(folder, "POLL_SECONDS", 0.01)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with RunFolder(tmp_path).locked():
            inside.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    with pytest.raises(RunFolderError, match="another process"), RunFolder(tmp_path).locked():
        pass
    threading.Timer(0.1, leave.set).start()
    with RunFolder(tmp_path).locked(wait=True):
        pass
    holder.join()
    assert "in use by another process: waiting" in capsys.readouterr().out


def test_a_complete_config_is_read(tmp_path):
    fill(tmp_path, ["config.json"])
    assert documents.read_config(tmp_path / "config.json")["measured"]["dataset"] == "test/a-v0"
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(DocumentError, match="cannot be read"):
        documents.read_config(tmp_path / "config.json")

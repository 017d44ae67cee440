from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from factory import make_dataset, same_parameters
from model_hub import TOKEN, ModelHub

from qgpo import BC, BCConfig, Ensemble, load_agent, load_from_folder
from qgpo.envs.store.downloading import digest
from qgpo.experiments import documents
from qgpo.scripts import share as script


@pytest.fixture
def run(tmp_path):
    """A run folder with an agent and returns at two guidance scales."""
    folder = tmp_path / "runs" / "one"
    agent = BC(BCConfig(steps=2, batch_size=4, hidden=(4,))).learn(make_dataset())
    agent.save(folder / "checkpoint.zip")
    played = {
        "env_id": "Pendulum-v1",
        "returns": [1.0, 2.0],
        "lengths": [5, 5],
        "seeds": [0, 1],
        "cut": 0,
        "mean": 1.5,
        "interval": [1.0, 2.0],
        "score": None,
        "score_interval": None,
    }
    measured = {"agent": "BC", "dataset": "a/b-v0", "seed": 0, "config": {}}
    about = {"format_version": 2, "measured": measured, "dataset": {"returns": [3.0, 4.0]}}
    documents.write(folder / "config.json", {**about, "args": {}})
    evaluations = [{"guidance_scale": None, **played}]
    documents.write(folder / "evaluation.json", {**about, "evaluations": evaluations})
    return folder


def test_a_run_becomes_a_folder_and_a_checkpoint_again(run, tmp_path, capsys):
    script.main(["save", str(run), "--folder", "shared", "--license", "mit", "--no-clip"])
    card = (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    assert "| the data | 3.50 |" in card
    assert "| agent | 1.50 |" in card
    Path("again-old.zip").touch()  # another file
    script.main(["load", "shared", "--output", "again.zip"])
    first, second = (load_agent(p, device="cpu") for p in (run / "checkpoint.zip", "again.zip"))
    assert same_parameters(first.get_parameters(), second.get_parameters())
    with pytest.raises(SystemExit, match=r"error: --output again.zip: again.zip exists"):
        script.main(["load", "shared", "--output", "again.zip"])
    with pytest.raises(SystemExit, match=r"error: --revision v1: shared is a folder"):
        script.main(["load", "shared", "--output", "new.zip", "--revision", "v1"])
    assert "again.zip" in capsys.readouterr().out


def test_several_runs_are_handed_on_together(run, tmp_path):
    other = tmp_path / "runs" / "two"
    shutil.copytree(run, other)
    entries = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["evaluations"]
    paths = [f"runs/{name}/checkpoint.zip" for name in ("two", "one")]
    members = [{"checkpoint": path, "sha256": digest(Path(path), "sha256")} for path in paths]
    together = {"members": members, "evaluations": [{**entries[0], "mean": 7.5}]}
    documents.write(run / "evaluation-together-20260101-000000.json", together)
    script.main(["save", str(run), str(other), "--folder", "both", "--no-clip"])
    assert isinstance(load_from_folder("both", device="cpu"), Ensemble)
    assert "| agent | 7.50 |" in (tmp_path / "both" / "README.md").read_text(encoding="utf-8")
    member = {"checkpoint": paths[0], "timesteps": 2}  # as earlier versions said it
    for changes, shown in (({}, True), ({"timesteps": 1}, False), ({"sha256": "0"}, False)):
        changed = {**together, "members": [{**member, **changes}, members[1]]}
        documents.write(run / "evaluation-together-20260101-000000.json", changed)
        folder = tmp_path / f"shared{len(changes)}{shown}{next(iter(changes), '')}"
        script.main(["save", str(run), str(other), "--folder", str(folder), "--no-clip"])
        assert ("7.50" in (folder / "README.md").read_text(encoding="utf-8")) == shown
    documents.write(run / "evaluation-together-20260101-000000.json", together)
    third = tmp_path / "runs" / "three"
    shutil.copytree(other, third)
    script.main(["save", str(run), str(third), "--folder", "others", "--no-clip"])
    assert "7.50" not in (tmp_path / "others" / "README.md").read_text(encoding="utf-8")
    script.main(["load", "both", "--output", "member.zip"])
    assert load_agent("member-1.zip", device="cpu").name == "BC"


@pytest.mark.parametrize("about", [{"max_episode_steps": 20}, {"sha256": "0"}])
def test_returns_of_cut_episodes_or_of_another_checkpoint_are_not_shared(run, about, tmp_path):
    document = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    document["evaluations"][0]["mean"] = 7.5
    documents.write(run / "evaluation-2.json", {**document, **about})
    script.main(["save", str(run), "--folder", "shared", "--no-clip"])
    card = (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    assert "| agent | 1.50 |" in card


def test_a_run_is_pushed_in_one_commit(run, monkeypatch, capsys):
    hub = ModelHub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    script.main(["push", str(run), "--repo-id", "me/agent", "--no-clip", "--private"])
    hub.close()
    assert f"commit: {hub.branches['me/agent']['main']}" in capsys.readouterr().out
    assert "checkpoint.zip" in hub.files("me/agent")
    assert len(hub.commits) == 2  # the empty one, and ours

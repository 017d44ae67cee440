"""Names from outside lead to no place but their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from factory import REMOTE_ID, numbered_episodes, write_buffers

from qgpo import load_dataset
from qgpo.envs import check_dataset, local_ids
from qgpo.envs.store.catalogue import catalogue
from qgpo.envs.store.downloading import damaged_files, download
from qgpo.envs.store.local import folder_of, split_version
from qgpo.envs.store.names import check_name
from qgpo.envs.store.remote import RemoteError, remote_catalogue
from qgpo.envs.store.writing import check_new_id
from qgpo.scripts import data as script

WRONG = [
    "../x-v0",
    "test/../../x-v0",
    "/etc/x-v0",
    "test//x-v0",
    "./x-v0",
    "..\\x-v0",
    "C:/x-v0",
    "C:x-v0",
    "\\\\host\\share\\x-v0",
    "test/x\0-v0",
    "test/x\n-v0",
    "con/x-v0",
    "test/NUL.txt/x-v0",
    "test/x-v0.",
    "test /x-v0",
    "test/*-v0",
    f"test/{'x' * 300}-v0",
    "",
    None,
    7,
]


@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(ValueError, match="malformed"):
        check_name(name, "file")
    for use in (split_version, load_dataset, check_new_id, download):
        if isinstance(name, str):
            with pytest.raises(ValueError, match=r"malformed.*expected"):
                use(name)


@pytest.mark.parametrize("name", ["test/x-v0", "data/main_data.hdf5", "data/0/part-0.arrow"])
def test_names_of_files_and_datasets_pass(name):
    assert check_name(name, "file") == name


@pytest.mark.parametrize("dataset_id", ["test/x-v00", "test/x-v03", "test/x-v٣"])
def test_a_version_is_written_in_one_way(dataset_id):
    with pytest.raises(ValueError, match="malformed"):
        split_version(dataset_id)


def outside():
    """A file beside the folder of datasets, which must stay as it is."""
    path = folder_of("").parent / "precious"
    path.write_bytes(b"precious")
    return path


@pytest.mark.parametrize(
    "name",
    [
        "remote/numbered-v0/data/../../../../../precious",
        "remote/numbered-v0/data//etc/precious",
        "remote/numbered-v0/data/..\\..\\precious",
        "remote/numbered-v0/data/nul",
    ],
)
def test_a_listing_with_a_name_that_leads_elsewhere_is_refused_before_a_file_is_fetched(hub, name):
    path = outside()
    hub.repositories["test"][name] = b"hostile"
    with pytest.raises(RemoteError, match=r"is not fetched: file .* is malformed"):
        download(REMOTE_ID)
    assert path.read_bytes() == b"precious"
    assert not hub.fetched("main_data.hdf5")
    assert local_ids() == []


def test_what_lies_beside_the_data_is_not_fetched(hub):
    hub.repositories["test"]["remote/numbered-v0/memmap/index.json"] = b"{}"
    download(REMOTE_ID)
    assert sorted(path.name for path in folder_of(REMOTE_ID).iterdir()) == ["data", "download.json"]


@pytest.mark.parametrize("listed", ["../../precious-v0", "test/../x-v0", "test/\x1b[2J-v0"])
def test_ids_of_a_listing_that_lead_elsewhere_are_named_and_not_asked_for(hub, listed):
    files = hub.repositories["test"]
    ids = json.loads(files["namespace_metadata.json"])["datasets"]
    files["namespace_metadata.json"] = json.dumps({"datasets": [*ids, listed]}).encode()
    found = remote_catalogue()
    assert "malformed" in found[listed]["error"]
    assert found[REMOTE_ID]["total_steps"] == 5
    lines = script.table(catalogue("remote"))
    assert all(line.isprintable() for line in lines)


def test_the_record_of_a_download_names_no_other_files(hub):
    download(REMOTE_ID)
    path, folder = outside(), folder_of(REMOTE_ID)
    os.mkfifo(folder.parent / "pipe")
    (folder / "link").symlink_to(path)
    about = {"size": 8, "sha256": "0" * 64}
    names = ["../../../../precious", str(path), "../pipe", "link", "data"]
    (folder / "download.json").write_text(json.dumps({"files": dict.fromkeys(names, about)}))
    assert damaged_files(folder) == names


def test_folders_that_are_links_are_listed_as_they_are_loaded(tmp_path):
    write_buffers(numbered_episodes((2,), (True,)), "test/far/x-v0")
    root = folder_of("")
    far = (root / "test").rename(tmp_path / "disk")
    (root / "test").symlink_to(far)
    (far / "loop").symlink_to(root)
    write_buffers(numbered_episodes((2,), (True,)), "near/y-v0")
    (root / "near" / "z-v0").symlink_to(root / "near" / "y-v0")
    assert local_ids() == ["near/y-v0", "near/z-v0", "test/far/x-v0"]
    assert len(load_dataset("test/far/x-v0", download=False)) == 2


ODD = {
    "no JSON": b"{",
    "not UTF-8": b'{"dataset_id": "\xff"}',
    "a list": b"[]",
    "nested": b"[" * 100_000,
    "text for a number": b'{"dataset_id": "odd/x-v0", "total_steps": "many"}',
    "NaN": b'{"dataset_id": "odd/x-v0", "total_steps": NaN}',
    "number for a text": b'{"dataset_id": "odd/x-v0", "algorithm_name": 7}',
    "authors": b'{"dataset_id": "odd/x-v0", "author": [1, "a"]}',
    "a spec that is none": b'{"dataset_id": "odd/x-v0", "env_spec": "[1]"}',
    "requirements": b'{"dataset_id": "odd/x-v0", "requirements": {"a": 1}}',
    "no id": b"{}",
    "surrogates": b'{"dataset_id": "\\ud800"}',
}


@pytest.mark.parametrize("kind", [*ODD, "a folder", "a pipe", "gone", "large"])
def test_odd_metadata_hide_no_other_dataset_and_are_named(kind, capsys, monkeypatch):
    write_buffers(numbered_episodes((2,), (True,)))
    path = folder_of("odd/x-v0") / "data" / "metadata.json"
    path.parent.mkdir(parents=True)
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(b"{}")
        monkeypatch.setattr("qgpo.envs.store.stated.LARGEST", 1)
    elif kind != "gone":
        path.write_bytes(ODD[kind])
    script.main(["list", "--where", "local"])
    lines = capsys.readouterr().out.splitlines()
    assert any("odd/x-v0" in line and "damaged: " in line for line in lines)
    assert any("test/numbered-v0" in line for line in lines)
    assert not check_dataset("odd/x-v0").ok
    with pytest.raises(ValueError, match="odd/x-v0"):
        load_dataset("odd/x-v0", download=False)


def test_a_dataset_of_the_users_own_is_not_fetched_over(hub):
    source = write_buffers(numbered_episodes((7,), (True,)), REMOTE_ID)
    path = Path(source.storage.data_path) / "metadata.json"
    path.write_text(path.read_text().replace('"minari_version": "', '"minari_version": "0.1+'))
    for use in (load_dataset, download):
        with pytest.raises(ValueError, match=r"made with Minari 0\.1.*is not replaced.*--force"):
            use(REMOTE_ID)
    with pytest.warns(UserWarning, match="the previous data are now in") as told:
        assert len(download(REMOTE_ID, force=True)) == 2
    kept = Path(str(told[0].message).rsplit(" ", 1)[1])
    assert (kept / "data" / "metadata.json").exists()

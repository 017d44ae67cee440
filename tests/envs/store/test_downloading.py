from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from time import sleep
from types import SimpleNamespace

import hub as hub_module
import numpy as np
import pytest
from factory import (
    MAIN,
    REMOTE_ID,
    numbered_episodes,
    publish,
    subprocess_environment,
    write_buffers,
)
from filelock import FileLock
from hub import ORGANISATION

from qgpo import load_dataset
from qgpo.envs.store.downloading import damaged_files, download
from qgpo.envs.store.local import datasets_root, folder_of, local_ids
from qgpo.envs.store.remote import RemoteError, choose_remote, open_remote, remote_catalogue
from qgpo.envs.store.scratch import LOCKS
from qgpo.envs.store.writing import sole_writer

ID = REMOTE_ID


def hidden():
    return [path.name for path in folder_of("").glob(".qgpo-download-*")]


def test_a_dataset_arrives_whole(hub):
    dataset = load_dataset(ID)
    assert dataset.observations[:, 0].tolist() == [0, 1, 100, 101, 102]
    assert hub.fetched("main_data.hdf5") == [None]
    record = json.loads((folder_of(ID) / "download.json").read_text())
    assert record["remote"] == f"hf://{ORGANISATION}"
    assert sorted(record["files"]) == ["data/main_data.hdf5", "data/metadata.json"]
    assert damaged_files(folder_of(ID)) == []
    assert not hidden()


def test_a_whole_dataset_is_fetched_again_only_by_force(hub):
    download(ID)
    hub.requests.clear()
    download(ID)
    assert not hub.requests
    download(ID, force=True)
    assert len(hub.fetched("main_data.hdf5")) == 1
    assert local_ids() == [ID]


def test_a_second_process_waits_for_the_first(hub, monkeypatch, capfd):
    waiting, acquire = threading.Event(), FileLock.acquire

    def report(self, *args, **kwargs):
        if LOCKS in str(self.lock_file) and kwargs.get("blocking", True):
            waiting.set()
        return acquire(self, *args, **kwargs)

    second = threading.Thread(target=download, args=(ID,))
    with sole_writer(ID):
        monkeypatch.setattr(FileLock, "acquire", report)
        second.start()
        assert waiting.wait(60)
        write_buffers(numbered_episodes((7,), (True,)), ID)  # the first one finishes
    second.join(60)
    assert not hub.fetched("main_data.hdf5")
    assert f"another process is writing dataset '{ID}': waiting" in capfd.readouterr().err
    assert len(load_dataset(ID)) == 7
    assert not hidden()


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    hub.cuts[MAIN] = [1000]
    assert len(load_dataset(ID)) == 5
    assert hub.fetched("main_data.hdf5") == [None, "bytes=1000-"]


def test_a_file_that_arrives_corrupt_is_fetched_again(hub):
    hub.spoils[MAIN] = 1
    assert len(load_dataset(ID)) == 5
    assert len(hub.fetched("main_data.hdf5")) == 2
    assert damaged_files(folder_of(ID)) == []


def test_a_remote_that_keeps_delivering_corrupt_files_is_refused(hub):
    hub.spoils[MAIN] = 2
    with pytest.raises(ValueError, match=r"main_data.hdf5 were downloaded twice.*checksum"):
        load_dataset(ID)
    assert local_ids() == []


def test_a_remote_dataset_with_missing_episodes_is_refused(hub):
    name = "remote/numbered-v0/data/metadata.json"
    metadata = json.loads(hub.repositories["test"][name])
    hub.repositories["test"][name] = json.dumps({**metadata, "total_steps": 7}).encode()
    with pytest.raises(RemoteError, match="itself damaged: its episodes have 5 steps"):
        download(ID)
    assert local_ids() == []


def half_made():
    folder = folder_of(ID) / "data"
    folder.mkdir(parents=True)
    (folder / "main_data.hdf5").write_bytes(b"half")
    return folder


def test_a_half_made_folder_is_replaced(hub):
    half_made()
    with pytest.warns(UserWarning, match=r"the previous data are now in .*numbered-v0-"):
        assert len(load_dataset(ID)) == 5
    assert local_ids() == [ID]
    (kept,) = folder_of(ID).parent.glob(".qgpo-replaced-*")
    assert (kept / "data" / "main_data.hdf5").read_bytes() == b"half"


def test_a_failed_repair_leaves_the_old_folder(hub):
    folder = half_made()
    hub.spoils[MAIN] = 9
    with pytest.raises(ValueError, match="downloaded twice"):
        load_dataset(ID)
    assert (folder / "main_data.hdf5").read_bytes() == b"half"


def test_lost_episodes_are_noticed_and_fetched_again(hub):
    download(ID)
    metadata = folder_of(ID) / "data" / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"total_steps": 5', '"total_steps": 6'))
    with pytest.raises(ValueError, match="episodes have 5 steps, its metadata say 6"):
        load_dataset(ID, download=False)
    assert damaged_files(folder_of(ID)) == ["data/metadata.json"]
    assert len(load_dataset(ID)) == 5
    assert damaged_files(folder_of(ID)) == []


def test_a_download_that_broke_off_keeps_the_files_that_had_arrived(hub):
    hub.cuts[MAIN] = [1000] * 9
    with pytest.raises(ValueError, match=r"failed.*Run it again"):
        load_dataset(ID)
    assert local_ids() == []
    hub.cuts.clear()
    before = len(hub.fetched("numbered-v0/data/metadata.json"))
    assert len(load_dataset(ID)) == 5
    assert len(hub.fetched("numbered-v0/data/metadata.json")) == before
    assert not hidden()


def fetching(hub, tmp_path):
    """Another process that downloads the dataset."""
    code = f"from qgpo import load_dataset; load_dataset({ID!r}, progress_bar=False)"
    environment = subprocess_environment(
        HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf-home"), HF_HUB_OFFLINE="0"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_download_leaves_no_dataset_and_is_gone_on_with(hub, tmp_path):
    hub.stalls.add(MAIN)
    process = fetching(hub, tmp_path)
    while not hub.fetched("main_data.hdf5"):
        assert process.poll() is None, process.communicate()
        sleep(0.05)
    sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.stalls.clear()
    assert local_ids() == []
    assert hidden() == [".qgpo-download-test+remote+numbered-v0"]
    assert len(load_dataset(ID)) == 5
    assert not hidden()


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
def test_a_full_disk_is_noticed_before_the_download(hub, monkeypatch):
    usage = os.statvfs(folder_of(""))
    free = type("Usage", (), {"total": usage.f_blocks, "used": 0, "free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    with pytest.raises(OSError, match="MB free: free some space"):
        load_dataset(ID)
    assert hub.fetched("main_data.hdf5") == []
    assert not hidden()


@pytest.fixture
def versions(hub, tmp_path):
    publish(
        hub, tmp_path / "far", "test/remote/numbered-v2", "test/remote/numbered-v10", lengths=(4,)
    )
    publish(hub, tmp_path / "far", "test/remote/numbered-other-v11")
    return hub


def test_the_newest_version_is_chosen_by_number(versions):
    assert choose_remote("test/remote/numbered")[0] == "test/remote/numbered-v10"
    assert load_dataset("test/remote/numbered").id == "test/remote/numbered-v10"
    assert len(load_dataset(ID)) == 5


def test_a_local_version_goes_before_a_newer_remote_one(versions):
    load_dataset(ID)
    versions.requests.clear()
    assert load_dataset("test/remote/numbered").id == ID
    assert not versions.requests


def test_versions_that_this_minari_cannot_read_are_passed_over(versions):
    name = "remote/numbered-v10/data/metadata.json"
    metadata = json.loads(versions.repositories["test"][name])
    content = json.dumps({**metadata, "minari_version": "99.0"}).encode()
    versions.repositories["test"][name] = content
    assert choose_remote("test/remote/numbered")[0] == "test/remote/numbered-v2"
    with pytest.raises(RemoteError, match=r"made with Minari 99.0; versions that can: .*-v0, .*v2"):
        download("test/remote/numbered-v10")


def test_unknown_ids_name_what_the_remote_has(versions):
    with pytest.raises(ValueError, match=r"which has test/remote/numbered-v0, .*-v2, .*-v10"):
        load_dataset("test/remote/numbered-v3")
    with pytest.raises(
        ValueError, match=r"which has .*test/remote/numbered-other-v11.* under test"
    ):
        load_dataset("test/remote/absent-v0")
    with pytest.raises(ValueError, match=r"not on hf://farm, which has nothing under nowhere/"):
        load_dataset("nowhere/absent-v0")


def test_a_broken_entry_does_not_hide_the_others(versions):
    del versions.repositories["test"]["remote/numbered-v2/data/metadata.json"]
    found = remote_catalogue("test/remote/")
    assert "EntryNotFoundError" in found["test/remote/numbered-v2"]["error"]
    assert found[ID]["total_steps"] == 5


def unreachable(monkeypatch, endpoint):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)


@pytest.mark.parametrize("size", ["x", None, -1, 1.5, True])
def test_a_listing_with_an_odd_size_is_refused(hub, monkeypatch, size):
    whole = hub_module.entry

    def odd(name, content):
        about = {**whole(name, content), "size": size}
        return {**about, "lfs": {**about["lfs"], "size": size}} if "lfs" in about else about

    monkeypatch.setattr(hub_module, "entry", odd)
    with pytest.raises(RemoteError, match=r"cannot be listed .ValueError: a file has the size"):
        download(ID)


def test_no_network_is_said_once_and_without_retries(hub, monkeypatch, capfd, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        unreachable(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ValueError, match=r"cannot be reached \(ConnectError.*MINARI_REMOTE"):
            load_dataset(ID)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not hidden()


def test_a_network_that_never_answers_is_given_up(hub, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        unreachable(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RemoteError, match=r"cannot be reached \(ReadTimeout"):
            open_remote(0.2)


def test_a_host_name_that_is_looked_up_for_ever_is_given_up(hub, monkeypatch):
    monkeypatch.setattr("qgpo.envs.store.remote._ask", lambda name, seconds: sleep(1.0))
    with pytest.raises(RemoteError, match=r"no answer within 0\.1 s"):
        open_remote(0.1)


def test_a_server_in_trouble_is_not_tried_again_and_again(hub):
    hub.status = 503
    with pytest.raises(RemoteError, match="HTTP status 503"):
        download(ID)
    assert len(hub.requests) == 1


def test_offline_mode_of_hugging_face_is_named(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RemoteError, match="HF_HUB_OFFLINE"):
        download(ID)


@pytest.mark.parametrize("remote", ["farama-minari", "s3://bucket", "hf://"])
def test_malformed_remotes_are_refused(monkeypatch, remote):
    monkeypatch.setenv("MINARI_REMOTE", remote)
    with pytest.raises(ValueError, match=r"expected hf://<organisation> or gcp://<bucket>"):
        open_remote()


def test_a_local_dataset_needs_no_network(hub):
    load_dataset(ID)
    hub.requests.clear()
    dataset = load_dataset(ID)
    assert np.all(np.isfinite(dataset.states))
    assert not hub.requests


class Bucket:
    """A remote that keeps no digests: a folder, through Minari's interface of remotes."""

    def __init__(self, folder):
        self.folder = folder
        self.more = []
        """names that it lists, too"""

    def list_datasets(self, prefix=None):
        with datasets_root(self.folder):
            return [name for name in local_ids() if name.startswith(prefix or "")]

    def get_dataset_metadata(self, dataset_id):
        return json.loads((self.folder / dataset_id / "data" / "metadata.json").read_text())

    bucket = storage_client = property(lambda self: self)

    def list_blobs(self, prefix):
        names = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")]
        names = [name for name in names if (self.folder / name).is_file()] + self.more
        return [SimpleNamespace(name=name) for name in names if name.startswith(prefix)]

    def download_blob_to_file(self, blob, file):
        file.write((self.folder / blob.name).read_bytes())


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_REMOTE", "gcp://bucket")
    monkeypatch.setattr("qgpo.envs.store.remote._ask", lambda name, seconds: None)
    remote = Bucket(tmp_path / "bucket")
    with datasets_root(remote.folder):
        write_buffers(numbered_episodes((2, 3), (True, True)), ID)
    monkeypatch.setattr("qgpo.envs.store.remote.get_cloud_storage", lambda: remote)
    return remote


def test_a_remote_without_digests_is_checked_by_its_episodes(bucket):
    assert len(load_dataset("test/remote/numbered")) == 5
    assert damaged_files(folder_of(ID)) == []
    main = bucket.folder / ID / "data" / "main_data.hdf5"
    main.write_bytes(main.read_bytes()[: main.stat().st_size // 2])
    with pytest.raises(RemoteError, match="itself damaged"):
        download(ID, force=True)
    assert len(load_dataset(ID)) == 5


def test_a_remote_whose_package_is_missing_is_named(monkeypatch):
    def missing():
        raise ImportError("google-cloud-storage is not installed")

    monkeypatch.setenv("MINARI_REMOTE", "gcp://bucket")
    monkeypatch.setattr("qgpo.envs.store.remote.get_cloud_storage", missing)
    with pytest.raises(RemoteError, match=r"gcp://bucket cannot be read here: google-cloud"):
        download(ID)

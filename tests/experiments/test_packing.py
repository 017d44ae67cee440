from __future__ import annotations

import copy
import json
import lzma
from pathlib import Path

import pytest
from factory import ROOT

from qgpo.experiments import packing
from qgpo.experiments.packing import (
    EPISODES,
    PROVENANCE,
    ResultError,
    pack,
    read_document,
    read_documents,
    write_document,
)

REFERENCE = {"minimum": -1.5, "maximum": 10, "source": "by hand"}
DOCUMENT = {
    "format_version": 1,
    "label": 'QGPO, "beta" 10 €',
    "measured": {"config": {"beta": 10.0, "hidden": [8, 8]}, "dataset": "a/b-v0", "seed": 0},
    "dataset": {"id": "a/b-v0", "returns": [1.0, 2, 0.1 + 0.2], "reference": REFERENCE},
    "versions": {"python": "3.11"},
    "machine": {"cpus": 2},
    "evaluations": [
        {
            "guidance_scale": None,
            "returns": [5874.979142827349, 1e-300, -0.0],
            "lengths": [1000, 7, 1],
            "seeds": [10000, 10001, 2**40],
            "cut": 0,
            "interval": [0.1, 0.30000000000000004],
            "reference": REFERENCE,
        },
        {"guidance_scale": 1.0, "returns": [3], "lengths": [4], "seeds": [5], "reference": None},
    ],
}
SAVED = ("episodes.csv.xz", "provenance.json")


def text(documents) -> str:
    """Equal for equal documents only: == takes 1 for 1.0."""
    return json.dumps(documents, sort_keys=True)


def changed(seed: int) -> packing.Document:
    """Another cell's document, with the same dataset, versions and machine."""
    document = copy.deepcopy(DOCUMENT)
    document["measured"]["seed"] = seed
    document["evaluations"][0]["returns"][0] += seed
    return document


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "cells"
    for seed in range(3):
        write_document(folder, f"a-b-v0-QGPO,-s{seed}", changed(seed))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_documents_are_read_back_exactly(folder):
    before = read_documents(folder)
    assert pack(folder) == list(before) == [f"a-b-v0-QGPO,-s{seed}" for seed in range(3)]
    assert names(folder) == sorted(SAVED)
    assert text(read_documents(folder)) == text(before)
    assert text(read_document(folder, "a-b-v0-QGPO,-s2")) == text(changed(2))
    assert read_document(folder, "another") is None


def test_the_tables_have_a_row_per_episode_and_shared_parts_once(folder):
    pack(folder)
    rows = lzma.decompress((folder / EPISODES).read_bytes()).decode().splitlines()
    assert rows[:2] == [
        "cell,guidance_scale,seed,return,length",
        '"a-b-v0-QGPO,-s0",null,10000,5874.979142827349,1000',
    ]
    assert len(rows) == 1 + 3 * 4
    provenance = json.loads((folder / PROVENANCE).read_text())
    kinds = sorted(name.rpartition("-")[0] for name in provenance["shared"])
    assert kinds == ["config", "dataset", "machine", "reference", "versions"]
    assert (folder / PROVENANCE).read_text().count("by hand") == 1


def test_the_tables_depend_on_the_documents_alone(folder, tmp_path):
    pack(folder)
    other = tmp_path / "other"
    for seed in (2, 0):
        write_document(other, f"a-b-v0-QGPO,-s{seed}", changed(seed))
    pack(other)
    write_document(other, "a-b-v0-QGPO,-s1", changed(1))
    assert pack(other) == ["a-b-v0-QGPO,-s1"]
    for name in SAVED:
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_packing_again_changes_nothing(folder):
    pack(folder)
    before = [((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns) for name in SAVED]
    assert pack(folder) == []
    after = [((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns) for name in SAVED]
    assert before == after


def test_a_cells_own_file_takes_precedence(folder):
    pack(folder)
    cell = "a-b-v0-QGPO,-s1"
    newer = {**changed(1), "evaluations": changed(9)["evaluations"][1:]}
    write_document(folder, cell, newer)
    assert text(read_documents(folder)[cell]) == text(read_document(folder, cell)) == text(newer)
    assert text(read_documents(folder)["a-b-v0-QGPO,-s2"]) == text(changed(2))
    assert pack(folder) == [cell]
    assert text(read_document(folder, cell)) == text(newer)


@pytest.mark.parametrize("step", ["rename 1", "rename 2", "unlink 1", "unlink 2"])
def test_an_interruption_loses_nothing(step, folder, monkeypatch):
    pack(folder)
    other_scale = changed(5)
    other_scale["evaluations"][1]["guidance_scale"] = 2.0
    other_scale["evaluations"].pop(0)
    write_document(folder, "a-b-v0-QGPO,-s1", other_scale)
    write_document(folder, "new", changed(7))
    before = read_documents(folder)
    kind, count = step.split()
    name = {"rename": "replace", "unlink": "unlink"}[kind]
    real, calls = getattr(Path, name), []

    def interrupted(path, *args, **options):
        if name == "replace" or path.suffix == ".json":
            calls.append(path)
            if len(calls) == int(count):
                raise KeyboardInterrupt
        return real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack(folder)
    assert text(read_documents(folder)) == text(before)
    pack(folder)
    assert text(read_documents(folder)) == text(before)
    assert names(folder) == sorted(SAVED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_scale": 1.0}, "without loss"),  # two evaluations at one scale
        ({"returns": [1.0]}, "cannot be packed"),
        ({"lengths": [], "returns": [], "seeds": []}, "without loss"),
        ({"cut": {"shared": "by a coincidence"}}, "cannot be packed"),
    ],
)
def test_what_would_be_lost_is_refused(change, message, folder):
    document = changed(0)
    document["evaluations"][0].update(change)
    write_document(folder, "odd", document)
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    with pytest.raises(ResultError, match=message):
        pack(folder)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (EPISODES, b"nothing"),
        (EPISODES, lzma.compress(b"cell,guidance_scale,seed,return,length\na,1.0,2\n")),
        (PROVENANCE, b"[]"),
        (PROVENANCE, b'{"format_version": 3, "shared": {}, "cells": {}}'),
        (PROVENANCE, b'{"format_version": 1, "cells": {"a": {"shared": "b"}}, "shared": {}}'),
        ("single.json", b"{}"),
        ("single.json", b"[1"),
    ],
)
def test_damaged_files_are_refused_by_name(name, content, folder):
    pack(folder)
    (folder / name).write_bytes(content)
    with pytest.raises(ResultError, match=name):
        read_documents(folder)
    with pytest.raises(ResultError, match=name):
        pack(folder) if name == "single.json" else read_document(folder, "a")


HEADER = "cell,guidance_scale,seed,return,length\n"


def provenance(shared: dict, /, **dataset) -> bytes:
    cell = {"evaluations": [], "dataset": dataset}
    return json.dumps({"format_version": 1, "shared": shared, "cells": {"a": cell}}).encode()


def doubling(levels: int) -> dict:
    """Each part has the next one twice."""
    parts = {f"a{i}": {name: {"shared": f"a{i + 1}"} for name in "xy"} for i in range(levels)}
    return {**parts, f"a{levels}": {"z": 1}}


@pytest.mark.parametrize(
    ("episodes", "tables", "message"),
    [
        (HEADER + "a,null,1,2,3\n" * 100_000, provenance({}), "unpacks to more than"),
        (HEADER + "a," + "9" * 200_000 + ",1,2,3\n", provenance({}), "field larger than"),
        (HEADER + "a,1,1,2,3\nb,1,1,2,3\na,1,1,2,3\n", provenance({}), "in two places"),
        (HEADER, provenance(doubling(40), shared="a0"), "a cell has more than"),
        (HEADER, provenance({"a": {"x": {"shared": "a"}}}, shared="a"), "RecursionError"),
        (HEADER, provenance({})[:-1] + b',"cells":{}}', "'cells' twice"),
        (HEADER, b"[" * 100_000, "is not JSON"),
    ],
    ids=["rows", "field", "places", "doubling", "circle", "twice", "deep"],
)
def test_tables_that_grow_are_refused(episodes, tables, message, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SLACK", 300_000)
    (tmp_path / EPISODES).write_bytes(lzma.compress(episodes.encode(), preset=0))
    (tmp_path / PROVENANCE).write_bytes(tables)
    with pytest.raises(ResultError, match=message):
        read_documents(tmp_path)


def test_a_part_of_many_cells_is_read_once(tmp_path):
    (tmp_path / EPISODES).write_bytes(lzma.compress(HEADER.encode()))
    (tmp_path / PROVENANCE).write_bytes(provenance(doubling(12), shared="a0"))
    dataset = read_documents(tmp_path)["a"]["dataset"]
    assert dataset["x"] is dataset["y"]


def test_an_empty_folder_has_no_documents(tmp_path):
    assert read_documents(tmp_path) == read_documents(tmp_path / "absent") == {}
    assert pack(tmp_path) == []
    assert names(tmp_path) == []


def test_the_committed_tables_are_those_of_their_documents():
    folders = sorted(path.parent for path in (ROOT / "benchmarks").glob(f"*/{PROVENANCE}"))
    assert folders
    for folder in folders:
        assert names(folder) in (sorted(SAVED), sorted([*SAVED, "report"]))
        documents = read_documents(folder)
        for document in documents.values():
            assert all(evaluation["returns"] for evaluation in document["evaluations"])
        committed = lzma.decompress((folder / EPISODES).read_bytes())
        tables = (committed.decode(), (folder / PROVENANCE).read_text(encoding="utf-8"))
        assert packing._to_tables(documents) == tables

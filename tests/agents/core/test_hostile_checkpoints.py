"""Checkpoints that were made to do harm: refused before anything is built, loaded or written."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_tester import StopAfter
from factory import WHITENED, make_dataset, same_parameters
from gymnasium import spaces
from safetensors.torch import load, save

from qgpo import QGPO, EnergyGuidedConfig, EnergyGuidedDiffusion, load_agent
from qgpo.agents.core import archive
from qgpo.agents.core.checkpoint import CheckpointError, read_checkpoint
from qgpo.agents.core.header import DTYPES as STORABLE
from qgpo.agents.core.header import space_from_json, space_to_json
from qgpo.agents.general.config import Layout
from qgpo.envs.tasks.reference import ReferenceScores

MEMBERS = ["checkpoint.json", *(f"{n}.safetensors" for n in ("modules", "optimizers", "tables"))]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A checkpoint in the middle of the critic, with every kind of table."""
    path = tmp_path_factory.mktemp("good") / "agent.zip"
    config = replace(WHITENED, critic_lambda=0.9)
    steps = config.whitening_steps + config.behavior_steps + 2
    QGPO(config, seed=1, device="cpu").learn(make_dataset(), StopAfter(steps)).save(path)
    assert QGPO.load(path, device="cpu").stage == "critic"
    return path.read_bytes()


@pytest.fixture
def members(content):
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def packed(members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as opened:
        for name, value in members.items():
            opened.writestr(name, value)
    return file.getvalue()


def refused(content, match=None):
    with pytest.raises(CheckpointError, match=match) as caught:
        _load(content)
    assert len(str(caught.value)) < 2000


def _load(content):
    with open("agent.zip", "wb") as file:
        file.write(content)
    return load_agent("agent.zip", device="cpu")


# The zip ------------------------------------------------------------------------------------


def set_sizes(content, name, size, local=True, directory=True):
    """The sizes of a member where they are said."""
    content, value = bytearray(content), struct.pack("<II", size, size)
    at, entry = content.find(name), content.rfind(name)
    if local:
        content[at - 12 : at - 4] = value
    if directory:
        content[entry - 26 : entry - 18] = value
    return bytes(content)


ZIPS = {
    "a size of 2^31 - 1": lambda c: set_sizes(c, b"tables.safetensors", 2**31 - 1),
    "a size of 2^32 - 1": lambda c: set_sizes(c, b"tables.safetensors", 2**32 - 1),
    "a size of nothing": lambda c: set_sizes(c, b"modules.safetensors", 0),
    "another size in the directory": lambda c: set_sizes(c, b"modules.safetensors", 9, local=False),
    "another size before the member": lambda c: set_sizes(c, MEMBERS[0].encode(), 9, True, False),
    "something before": lambda c: b"#!/bin/sh\n" + c,
    "something after": lambda c: c + b"\0",
    "half of it": lambda c: c[: len(c) // 2],
    "nothing": lambda c: b"",
    "no directory": lambda c: c[: c.rfind(b"PK\1\2")],
    "a flag of encryption": lambda c: c[:6] + b"\1" + c[7:],
    "a flag of sizes that follow": lambda c: c[:6] + b"\x08" + c[7:],
    "a method": lambda c: c[:8] + b"\x08" + c[9:],
    "another checksum": lambda c: c[:14] + b"\0\0\0\0" + c[18:],
    "a thousand records": lambda c: c + c[c.rfind(b"PK\1\2") : c.rfind(b"PK\5\6")] * 1000,
}


@pytest.mark.parametrize("what", ZIPS)
def test_a_zip_of_another_form_is_refused(what, content):
    refused(ZIPS[what](content))


def test_compressed_members_are_refused(members):
    refused(packed(members, zipfile.ZIP_DEFLATED), "compressed")


def test_a_member_that_is_there_twice_is_refused(members):
    file = io.BytesIO(packed(members))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(file, "a") as opened:
        opened.writestr("tables.safetensors", members["tables.safetensors"])
    refused(file.getvalue(), "twice")


@pytest.mark.parametrize("limit", [100, 20_000])
def test_long_files_are_read(limit, members, monkeypatch):
    """With a limit of few bytes, all records of a file of gigabytes are there."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    file = io.BytesIO()
    archive.write_members(file, list(members.items()))
    found = archive.find_members(file, MEMBERS)
    assert {name: archive.read_member(file, found[name]) for name in MEMBERS} == members
    for byte in (b"x", b"\0"):
        with pytest.raises(archive.ArchiveError):
            archive.find_members(io.BytesIO(file.getvalue() + byte), MEMBERS)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "agent.zip")
    for path in (tmp_path / "agent.zip", tmp_path):
        with pytest.raises(CheckpointError, match=r"is no file|does not exist"):
            QGPO.load(path, device="cpu")
    with pytest.raises(ValueError, match="not a seekable file"):
        QGPO.load(io.StringIO("text"))


def test_open_files_are_written_and_read(content):
    agent = _load(content)
    file = io.BytesIO(b"what was there before, longer or not")
    agent.save(file)
    assert same_parameters(read_checkpoint(file).modules, agent.networks.state_dict())
    assert not file.closed


# The header ---------------------------------------------------------------------------------


def changed_header(members, *path, to):
    header = json.loads(members["checkpoint.json"])
    part = header
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = to
    return packed({**members, "checkpoint.json": json.dumps(header).encode()})


BOX = {"low": [-1.0], "high": [1.0], "dtype": "float32"}
HEADERS = [
    (("config", "critic_hidden"), [30_000, 30_000]),
    (("config", "critic_hidden"), [1] * 20_000),
    (("config", "behavior_hidden"), [2**62]),
    (("config", "behavior_hidden"), [10**400]),
    (("config", "behavior_hidden"), [[8]]),
    (("config", "behavior_hidden"), 8),
    (("config", "solver_steps"), 10**9),
    (("config", "solver_steps"), True),
    (("config", "support_actions"), 2.0),
    (("config", "gamma"), [0.5]),
    (("config", "gamma"), "0.5"),
    (("config", "gamma"), math.nan),
    (("config", "gamma"), math.inf),
    (("config", "critic_layer_norm"), 1),
    (("config", "solver"), ["ddim"]),
    (("config", "schedule"), {"cosine": 1}),
    (("config", "guidance"), "os:system"),
    (("config", "guidance_options"), {"a": 1}),
    (("config", "guidance_options"), [1]),
    (("agent",), ["QGPO"]),
    (("agent",), "A" * 10**6),
    (("seed",), -1),
    (("seed",), True),
    (("seed",), 2**64),
    (("seed",), 1.0),
    (("format_version",), True),
    (("format_version",), 10**30),
    (("format_version",), "2"),
    (("progress",), [1]),
    (("progress", "behavior"), -1),
    (("progress", "behavior"), 10**9),
    (("progress", "behavior"), 1.0),
    (("progress", "behavior"), True),
    (("progress", "behavior"), math.nan),
    (("progress", "critic"), 0),
    (("num_timesteps",), 10**6),
    (("num_timesteps",), -1),
    (("stage",), "other"),
    (("stage",), ["critic"]),
    (("optimizers",), {}),
    (("optimizers", "critic"), {}),
    (("optimizers", "critic", 0), [1]),
    (("optimizers", "critic", 0, "lr"), 1e9),
    (("optimizers", "critic", 0, "lr"), -1e-3),
    (("optimizers", "critic", 0, "lr"), True),
    (("optimizers", "critic", 0, "betas"), [2.0, 0.999]),
    (("optimizers", "critic", 0, "betas"), [0.9]),
    (("optimizers", "critic", 0, "eps"), -1.0),
    (("optimizers", "critic", 0, "weight_decay"), 1e9),
    (("optimizers", "critic", 0, "amsgrad"), True),
    (("optimizers", "critic", 0, "maximize"), True),
    (("optimizers", "critic", 0, "fused"), "builtins:eval"),
    (("optimizers", "critic", 0, "params"), [0]),
    (("optimizers", "critic", 0, "params"), [5, 4, 3, 2, 1, 0]),
    (("optimizers", "critic", 0, "unknown"), 1),
    (("observation_space",), {**BOX, "low": [-1.0] * 10**5, "high": [1.0] * 10**5}),
    (("action_space",), {**BOX, "low": [1.0], "high": [-1.0]}),
    (("action_space",), {**BOX, "low": [-math.inf]}),
    (("action_space",), {**BOX, "low": [math.nan]}),
    (("action_space",), {**BOX, "low": [[-1.0]], "high": [[1.0]]}),
    (("action_space",), {**BOX, "low": -1.0, "high": 1.0}),
    (("action_space",), {**BOX, "low": ["-1"]}),
    (("action_space",), {**BOX, "low": [False]}),
    (("action_space",), {**BOX, "high": [1e300]}),
    (("action_space",), {**BOX, "high": [10**400]}),
    (("action_space",), {**BOX, "high": [1.1]}),
    (("action_space",), {**BOX, "dtype": "object"}),
    (("action_space",), {**BOX, "dtype": "int8", "high": [300]}),
    (("action_space",), {**BOX, "dtype": "int8", "high": [0.5]}),
    (("action_space",), {**BOX, "dtype": "S1000000000"}),
    (("action_space",), {**BOX, "shape": [10**9]}),
    (("observation_adapter",), {"parts": [[["a"], [2**40]]], "complete": True}),
    (("observation_adapter",), {"parts": [[["a"], [3]]], "complete": "yes"}),
    (("observation_adapter",), {"parts": [[[1], [3]]], "complete": True}),
    (("dataset",), []),
    (("dataset", "id"), 5),
    (("dataset", "fingerprint"), ["x"]),
    (("dataset", "env_spec"), 5),
    (("dataset", "env_spec"), "[" * 10**5),
    (("dataset", "reference"), {"minimum": 1.0, "maximum": 1.0, "source": "x"}),
    (("dataset", "reference"), {"minimum": "0", "maximum": 1.0, "source": "x"}),
    (("dataset", "reference"), {"minimum": 0.0, "maximum": math.inf, "source": "x"}),
]


@pytest.mark.parametrize(("path", "value"), HEADERS, ids=lambda v: str(v)[:40])
def test_a_value_in_the_header_is_refused(path, value, members):
    refused(changed_header(members, *path, to=value))


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": ' * 100_000,
        b'{"seed": 1, "seed": 2}',
        b'{"seed": NaN}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'"text"',
        '{"agent": "QGPO"}'.encode("utf-16"),
        b" " * (1 << 24) + b"{}",
    ],
    ids=["deep", "twice", "nan", "digits", "text", "utf-16", "long"],
)
def test_json_of_another_form_is_refused(text, members):
    refused(packed({**members, "checkpoint.json": text}), "damaged|cannot be used")


# Tensors ------------------------------------------------------------------------------------


def changed_tensor(members, file, name, change):
    tensors = load(members[f"{file}.safetensors"])
    tensors[name] = change(tensors[name])
    return packed({**members, f"{file}.safetensors": save(tensors)})


TENSORS = [
    ("optimizers", "/exp_avg", lambda t: t.reshape(-1)[:1].clone()),
    ("optimizers", "/exp_avg", lambda t: t.double()),
    ("optimizers", "/exp_avg", lambda t: t.half()),
    ("optimizers", "/exp_avg", lambda t: t.reshape(-1)),
    ("optimizers", "/exp_avg", lambda t: torch.full_like(t, torch.nan)),
    ("optimizers", "/exp_avg_sq", lambda t: t - 1.0),
    ("optimizers", "/exp_avg_sq", lambda t: t + torch.inf),
    ("optimizers", "/step", lambda t: t[None]),
    ("optimizers", "/step", lambda t: t.long()),
    ("optimizers", "/step", lambda t: -t),
    ("optimizers", "/step", lambda t: t * torch.nan),
    ("modules", "weight", lambda t: t.double()),
    ("modules", "weight", lambda t: t.bfloat16()),
    ("modules", "weight", lambda t: t.int()),
    ("modules", "weight", lambda t: t * torch.inf),
    ("modules", "mean", lambda t: t[None].clone()),
    ("tables", "^support", lambda t: t.double()),
    ("tables", "^support", lambda t: t[:, :1].clone()),
    ("tables", "^support", lambda t: t * torch.nan),
    ("tables", "returns", lambda t: t[:, None].clone()),
    ("tables", "returns", lambda t: t.long()),
    ("tables", "training", lambda t: t[:-1].clone()),
    ("tables", "training", lambda t: torch.zeros_like(t)),
    ("tables", "training", lambda t: torch.full_like(t, 255)),
    ("tables", "training", lambda t: t.int()),
    ("tables", "training", lambda t: t[:0].clone()),
    ("tables", "prediction", lambda t: t[None].clone()),
    ("tables", "generator/support", lambda t: t[:100].clone()),
]


@pytest.mark.parametrize("which", range(len(TENSORS)))
def test_a_tensor_of_another_kind_is_refused(which, members):
    file, ending, change = TENSORS[which]
    names = sorted(load(members[f"{file}.safetensors"]))
    name = next(k for k in names if f"^{k}".endswith(ending))
    refused(changed_tensor(members, file, name, change), r"cannot be used")


@pytest.mark.parametrize("name", ["other", "generator/other", "critic/999/step", "critic/00/step"])
@pytest.mark.parametrize("file", ["modules", "optimizers", "tables"])
def test_a_tensor_that_nothing_has_is_refused(file, name, members):
    tensors = {**load(members[f"{file}.safetensors"]), name: torch.zeros(())}
    refused(packed({**members, f"{file}.safetensors": save(tensors)}), r"cannot be used")


def test_a_stage_under_way_needs_its_optimizer_and_its_tables(members):
    tensors = load(members["optimizers.safetensors"])
    left = {k: v for k, v in tensors.items() if not k.startswith("critic/")}
    refused(packed({**members, "optimizers.safetensors": save(left)}), "critic optimizer")
    tables = load(members["tables.safetensors"])
    for gone in (["returns"], ["support", "generator/support"]):
        left = {k: v for k, v in tables.items() if k not in gone}
        refused(packed({**members, "tables.safetensors": save(left)}), "missing")


def with_names(content, change):
    """The table at the beginning of a safetensors member, changed."""
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    change(table[sorted(table)[0]], table[sorted(table)[1]])
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


@pytest.mark.parametrize(
    "change",
    [
        lambda a, b: a.update(data_offsets=b["data_offsets"]),
        lambda a, b: a.update(data_offsets=[0, 2**63 - 1]),
        lambda a, b: a.update(shape=[2**62, 4]),
        lambda a, b: a.update(shape=[-1]),
        lambda a, b: a.update(dtype="F8_E4M3"),
        lambda a, b: a.update(dtype="X"),
    ],
    ids=["overlap", "far", "large", "negative", "eight bits", "unknown"],
)
def test_a_table_of_tensors_that_lies_is_refused(change, members):
    tables = with_names(members["modules.safetensors"], change)
    refused(packed({**members, "modules.safetensors": tables}))


def test_many_names_are_refused_before_they_are_read(members):
    long = struct.pack("<Q", 1 << 23) + b" " * (1 << 23)
    refused(packed({**members, "modules.safetensors": long}), "names of tensors")


@pytest.mark.parametrize("name", ["support", "returns"])
def test_a_table_of_other_rows_is_refused_with_the_data(name, members):
    changed = changed_tensor(members, "tables", name, lambda t: torch.cat([t, t[:1]]))
    with pytest.raises(ValueError, match=f"tables .*{name}.* do not fit the dataset"):
        _load(changed).learn(make_dataset(), reset_num_timesteps=False)


# Spaces -------------------------------------------------------------------------------------

DTYPES = [d for d in STORABLE if d != "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_spaces_of_every_dtype_survive_to_the_last_digit(dtype):
    kind = np.dtype(dtype).type
    limits = np.finfo(kind) if np.issubdtype(kind, np.floating) else np.iinfo(kind)
    low = np.array([limits.min, limits.min, 0], kind)
    high = np.array([limits.max, 1, limits.max], kind)
    if np.issubdtype(kind, np.floating):
        low = np.append(low, [kind(-np.inf), kind(0.1)]).astype(kind)
        high = np.append(high, [kind(np.inf), kind(np.pi)]).astype(kind)
    box = spaces.Box(low, high, dtype=kind)
    read = space_from_json(json.loads(json.dumps(space_to_json(box))))
    assert read == box
    assert read.dtype == box.dtype
    assert (read.low == box.low).all()
    assert (read.high == box.high).all()


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int32", "float32"])
def test_spaces_as_earlier_versions_wrote_them_are_read(dtype):
    limits = np.finfo(dtype) if dtype == "float32" else np.iinfo(dtype)
    box = spaces.Box(limits.min, limits.max, (2,), np.dtype(dtype).type)
    written = {
        "low": box.low.astype(float).tolist(),
        "high": box.high.astype(float).tolist(),
        "dtype": dtype,
    }
    assert space_from_json(json.loads(json.dumps(written))) == box


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_an_agent_of_extreme_observations_is_loaded(dtype, content):
    limits = np.finfo(dtype) if dtype is np.float64 else np.iinfo(dtype)
    agent = QGPO(WHITENED, device="cpu")
    box = spaces.Box(limits.min, limits.max, (3,), dtype)
    agent.set_spaces(box, spaces.Box(-1.0, 1.0, (1,), np.float32), "a test")
    agent.save("agent")
    assert QGPO.load("agent", device="cpu").observation_space == box


@pytest.mark.parametrize("bound", [np.nan, np.longdouble(1.0)], ids=["nan", "long double"])
def test_a_space_that_no_file_can_hold_is_refused_before_training(bound):
    dtype = np.longdouble if isinstance(bound, np.longdouble) else np.float32
    box = spaces.Box(-1.0, 1.0, (3,), dtype)
    box.high = np.full(3, bound, dtype)
    with pytest.raises(ValueError, match=r"dtype|bounds"):
        QGPO(WHITENED, device="cpu").set_spaces(box, spaces.Box(-1.0, 1.0, (1,)), "a test")


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.0, math.inf), (math.nan, 1.0)])
def test_reference_scores_that_give_no_score_are_refused(low, high):
    with pytest.raises(ValueError, match="returns"):
        ReferenceScores(low, high, "by hand")


# The general model --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("dims",), [10**9, 0]),
        (("dims",), [2, -1]),
        (("dims",), [2]),
        (("dims",), ["2", 0]),
        (("dims",), [True, 0]),
        (("labelled",), 1),
        (("fingerprint",), 5),
        (("history",), [1]),
        (("history", "data"), [{"loss": "x"}]),
        (("config", "hidden"), [50_000, 50_000]),
        (("config", "beta"), math.nan),
        (("config", "solver_steps"), 10**12),
        (("seed",), -5),
    ],
    ids=lambda v: str(v)[:30],
)
def test_a_general_model_s_header_is_checked(path, value):
    config = EnergyGuidedConfig(hidden=(4,), energy_hidden=(4,), data_steps=1, guidance_steps=1)
    model = EnergyGuidedDiffusion(config, device="cpu")
    model._build(Layout((2,), 0), True)
    model.save("model")
    with zipfile.ZipFile("model.zip") as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    with open("model.zip", "wb") as file:
        file.write(changed_header(members, *path, to=value))
    with pytest.raises(CheckpointError, match="model"):
        EnergyGuidedDiffusion.load("model", device="cpu")

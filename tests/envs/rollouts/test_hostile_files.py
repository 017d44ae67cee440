"""Policy files and statistics that were made to do harm: refused, by little memory, unrun."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from gymnasium import spaces

from qgpo.envs.rollouts.sb3_policies import load_policy
from qgpo.envs.rollouts.torch_files import read_state
from qgpo.envs.rollouts.vecnormalize import read_vecnormalize

resource = pytest.importorskip("resource")
BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
MOST_MEMORY = 64 << 10
"""kilobytes by which the largest size of this process may grow"""


def weights(**changes):
    """Of a PPO policy with one hidden layer."""
    good = {
        "log_std": torch.zeros(2),
        "mlp_extractor.policy_net.0.weight": torch.zeros(4, 3),
        "mlp_extractor.policy_net.0.bias": torch.zeros(4),
        "mlp_extractor.value_net.0.weight": torch.zeros(4, 3),
        "action_net.weight": torch.zeros(2, 4),
        "action_net.bias": torch.zeros(2),
    }
    good.update({name.replace("__", "."): value for name, value in changes.items()})
    return OrderedDict((k, v) for k, v in good.items() if v is not None)


def pth(state=None):
    file = io.BytesIO()
    torch.save(weights() if state is None else state, file)
    return file.getvalue()


def model(path, content=None, data=b"{}", method=zipfile.ZIP_STORED, **more):
    with zipfile.ZipFile(path, "w", method) as archive:
        if content is not False:
            archive.writestr("policy.pth", pth() if content is None else content)
        archive.writestr("data", data)
        for name, value in more.items():
            archive.writestr(name, value)


def changed_pth(change):
    """The weights with the members of their own zip changed."""
    with zipfile.ZipFile(io.BytesIO(pth())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, value)
    return file.getvalue()


def replaced(old, new):
    """In the pickle of the weights."""

    def change(members):
        name = next(name for name in members if name.endswith("data.pkl"))
        assert old in members[name]
        members[name] = members[name].replace(old, new)

    return changed_pth(change)


def pickled(content):
    def change(members):
        members[next(name for name in members if name.endswith("data.pkl"))] = content

    return changed_pth(change)


def memo(index):
    """A pickle that remembers one object under that number."""
    return b"\x80\x02}r" + struct.pack("<I", index) + b"."


PAIRS = b"K\x01\x85" + b"2\x86" * 40
"""an instruction each for pairs that hold the one before twice: a hash takes 2^40 steps"""
NAMED_AGAIN = b"\x80\x04\x8c\x01aX" + struct.pack("<I", 1 << 20) + b"b" * (1 << 20) + b"\x94"
HASHED = {
    "a nested key": b"\x80\x04}" + PAIRS + b"K\x01s.",
    "nested keys": b"\x80\x04}(K\x01K\x01" + PAIRS + b"K\x01u.",
    "nested keys at once": b"\x80\x04(" + PAIRS + b"K\x01d.",
    "a nested member": b"\x80\x04\x8f(" + PAIRS + b"\x90.",
    "a nested member of what does not change": b"\x80\x04(" + PAIRS + b"\x91.",
    "a nested key of an object": b"\x80\x02ca\nb\n)R" + PAIRS + b"K\x01s.",
    "a long name thousands of times": NAMED_AGAIN + b"h\x00h\x00\x93" * 3_000 + b".",
}
OLD_KEY = b"X\x01\x00\x00\x000q"
"""of the first storage, as torch writes it"""


def one_storage_for_all(rows=2000):
    """Many tensors that are the same storage."""
    same = torch.zeros(200_000)
    return weights(**{f"mlp_extractor__value_net__{i}": same for i in range(rows)})


def twice(path):
    model(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("policy.pth", pth())


def with_a_false_size(path):
    model(path)
    content = bytearray(path.read_bytes())
    size = struct.pack("<I", len(pth()))
    content = content.replace(size, struct.pack("<I", 2**31 - 1))
    path.write_bytes(content)


NAN = torch.full((4, 3), torch.nan)
FIRST = "mlp_extractor__policy_net__0__weight"
POLICIES = {
    "a member that unpacks to a thousand times its size": lambda p: model(
        p, b"PK" + bytes(1 << 26), method=zipfile.ZIP_DEFLATED
    ),
    "data that unpack to a thousand times their size": lambda p: model(
        p, data=b" " * (1 << 26), method=zipfile.ZIP_DEFLATED
    ),
    "a bzip2 member": lambda p: model(p, method=zipfile.ZIP_BZIP2),
    "a size that is not its own": with_a_false_size,
    "weights twice": twice,
    "no weights": lambda p: model(p, False),
    "weights of an old torch": lambda p: model(p, pickle.dumps({"a": 1})),
    "a list of tensors": lambda p: model(p, pth([torch.zeros(2)])),
    "a number for a tensor": lambda p: model(p, pth({"action_net.weight": 1.0})),
    "a tensor of another size than its storage": lambda p: model(
        p, replaced(b"K\x04K\x03\x86", b"M\xff\xffK\x03\x86")
    ),
    "a tensor of no step": lambda p: model(
        p, pth(weights(**{FIRST: torch.zeros(1).expand(1 << 14, 1 << 14)}))
    ),
    "a storage of unknown numbers": lambda p: model(
        p, replaced(b"torch FloatStorage"[:5] + b"\nFloatStorage", b"torch\nQUInt8Storage")
    ),
    "one storage for thousands of tensors": lambda p: model(p, pth(one_storage_for_all())),
    "a gigabyte of zeros that would be made": lambda p: model(
        p, pickled(b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R.")
    ),
    "an object remembered far away": lambda p: model(p, pickled(memo(2**31 - 1))),
    **{
        what: lambda p, content=content: model(p, pickled(content))
        for what, content in HASHED.items()
    },
    "a nested key of a storage": lambda p: model(p, replaced(OLD_KEY, PAIRS + OLD_KEY[-1:])),
    "thousands of classes": lambda p: model(p, pickled(b"\x80\x02" + b"ca\nb\n0" * 60_000 + b"}.")),
    "deep nesting": lambda p: model(p, data=b"[" * 100_000 + b"]" * 100_000),
    "data that are a list": lambda p: model(p, data=b"[1]"),
    "settings that are a list": lambda p: model(p, data=b'{"policy_kwargs": [1]}'),
    "settings that are nothing": lambda p: model(p, data=b'{"policy_kwargs": null}'),
    "an activation that is a number": lambda p: model(
        p, data=json.dumps({"policy_kwargs": {"activation_fn": 5}})
    ),
    "an activation that nobody knows": lambda p: model(
        p, data=json.dumps({"policy_kwargs": {"activation_fn": "<class 'os.system'>"}})
    ),
    "NaN": lambda p: model(p, pth(weights(**{FIRST: NAN}))),
    "infinity in what explores": lambda p: model(
        p, pth(weights(log_std=torch.full((2,), torch.inf)))
    ),
    "integers": lambda p: model(p, pth(weights(**{FIRST: torch.zeros(4, 3, dtype=torch.int64)}))),
    "a layer of three dimensions": lambda p: model(
        p, pth(weights(**{FIRST: torch.zeros(4, 3, 1)}))
    ),
    "layers that do not fit": lambda p: model(
        p, pth(weights(action_net__weight=torch.zeros(2, 5)))
    ),
    "no bias": lambda p: model(p, pth(weights(action_net__bias=None))),
    "a bias of another size": lambda p: model(p, pth(weights(action_net__bias=torch.zeros(3)))),
    "a layer left out": lambda p: model(
        p, pth(weights(mlp_extractor__policy_net__4__weight=torch.zeros(4, 4)))
    ),
    "a shared layer": lambda p: model(
        p, pth(weights(mlp_extractor__shared_net__0__weight=torch.zeros(3, 3)))
    ),
    "a feature extractor": lambda p: model(
        p, pth(weights(features_extractor__linear__weight=torch.zeros(3, 3)))
    ),
    "a memory": lambda p: model(p, pth(weights(lstm_actor__weight_ih_l0=torch.zeros(3, 3)))),
}


@pytest.fixture
def little_memory():
    """The largest size of this process does not grow by much."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Made beforehand: some take memory to make."""
    folder = tmp_path_factory.mktemp("models")
    for i, make in enumerate(POLICIES.values()):
        make(folder / f"{i}.zip")
    return {what: folder / f"{i}.zip" for i, what in enumerate(POLICIES)}


@pytest.mark.parametrize("what", POLICIES)
def test_a_hostile_policy_is_refused(what, files, little_memory):
    with pytest.raises(ValueError, match="polic") as caught:
        load_policy(files[what], BOX)
    assert len(str(caught.value)) < 600


def test_the_model_that_these_are_made_from_is_read(tmp_path):
    model(tmp_path / "model.zip", data=b'{"policy_kwargs": {}}')
    action = load_policy(tmp_path / "model.zip", BOX).act(np.zeros((1, 3)), torch.Generator(), True)
    np.testing.assert_array_equal(action, np.zeros((1, 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_tensors_are_those_that_torch_load_reads(dtype):
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    state = {"whole": whole, "part": whole[1:3, ::2], "turned": whole.T, "none": whole[:0]}
    content = pth({**state, "number": whole[0, 0]})
    expected = torch.load(io.BytesIO(content), weights_only=True)
    found = read_state(content)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# Statistics ---------------------------------------------------------------------------------


class Record:
    """Pickles as an object of that class with that state."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return (Plain, (), self.state)


class Plain:
    """Nothing."""


def statistics(**changes):
    rms = {"mean": np.zeros(3), "var": np.ones(3), **changes.pop("rms", {})}
    return Record({"obs_rms": Record(rms), "epsilon": 1e-8, "clip_obs": 10.0, **changes})


STATISTICS = {
    "negative variance": statistics(rms={"var": -np.ones(3)}),
    "no variance at all": statistics(rms={"var": np.zeros(3)}, epsilon=0.0),
    "a negative epsilon": statistics(epsilon=-2.0),
    "an infinite clip": statistics(clip_obs=float("inf")),
    "a clip at zero": statistics(clip_obs=0.0),
    "no clip": statistics(clip_obs=None),
    "text": statistics(epsilon="small"),
    "single precision": statistics(rms={"mean": np.zeros(3, np.float32)}),
    "the other byte order": statistics(rms={"mean": np.zeros(3, ">f8")}),
    "two dimensions": statistics(rms={"mean": np.zeros((3, 1))}),
    "no observations": statistics(rms={"mean": np.zeros(0), "var": np.zeros(0)}),
    "other lengths": statistics(rms={"mean": np.zeros(4)}),
    "objects": statistics(rms={"mean": np.array([None, 1, 2])}),
    "a list": statistics(rms={"mean": [0.0, 0.0, 0.0]}),
    "observations that were not normalized": statistics(norm_obs=False),
}
PICKLES = {
    **{what: pickle.dumps(made) for what, made in STATISTICS.items()},
    "an object remembered far away": memo(2**31 - 1),
    "millions of classes": b"\x80\x02" + b"ca\nb\n0" * 500_000 + b".",
    "millions of dictionaries": b"\x80\x02" + b"}" * 3_000_000 + b".",
    **HASHED,
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "a number of many digits": b"L" + b"9" * 10_000 + b"L\n.",
    "a state for a class": b"\x80\x02cos\nsystem\n}b.",
    "a call of what is no function": b"\x80\x02K\x05)R.",
    "deep nesting": b"\x80\x02" + b"]" * 90_000 + b"a" * 89_999 + b".",
    "nothing": b"",
}


@pytest.mark.parametrize("what", PICKLES)
def test_hostile_statistics_are_refused(what, tmp_path, little_memory):
    (tmp_path / "v.pkl").write_bytes(PICKLES[what])
    with pytest.raises(ValueError, match=r"v\.pkl"):
        read_vecnormalize(tmp_path / "v.pkl")


def test_a_shape_that_is_nested_without_end_is_named_in_short(tmp_path):
    record = pickle.dumps(statistics(rms={"mean": np.zeros(77)}), 2)
    shape = b"K\x4d\x85"
    assert record.count(shape) == 1
    (tmp_path / "v.pkl").write_bytes(record.replace(shape, PAIRS))
    with pytest.raises(ValueError, match=r"v\.pkl") as caught:
        read_vecnormalize(tmp_path / "v.pkl")
    assert len(str(caught.value)) < 1000


def test_the_statistics_that_these_are_made_from_are_read(tmp_path):
    for protocol in range(2, 6):
        (tmp_path / "v.pkl").write_bytes(pickle.dumps(statistics(), protocol))
        assert read_vecnormalize(tmp_path / "v.pkl").clip == 10.0

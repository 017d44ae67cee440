from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from factory import CONFIGS, numbered_episodes, write_buffers
from gymnasium import spaces

from qgpo import QGPO, load_dataset
from qgpo.envs.data.figure import summary
from qgpo.envs.tasks.observations import FlatObservations, ObservationAdapter, stack


def box(*shape, low=-np.inf):
    return spaces.Box(low, np.inf, shape, np.float64)


NESTED = spaces.Dict(
    {
        "b": spaces.Dict({"y": box(), "x": box(2, 2, low=0.0)}),
        "a": box(3),
    }
)
OBSERVATION = {
    "a": np.array([1.0, 2.0, 3.0]),
    "b": {"x": np.array([[4.0, 5.0], [6.0, 7.0]]), "y": np.array(8.0)},
}


def test_all_parts_in_the_order_of_their_names():
    adapter = ObservationAdapter.choose(NESTED, None, "the test")
    assert adapter.parts == ((("a",), (3,)), (("b", "x"), (2, 2)), (("b", "y"), ()))
    assert adapter.size == 8
    assert adapter.flatten(OBSERVATION).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert adapter.box(NESTED, "the test").low.tolist() == [-np.inf] * 3 + [0.0] * 4 + [-np.inf]


@pytest.mark.parametrize(
    "part", [np.full(3, "1"), np.zeros(3, "M8[s]"), np.ma.array(np.ones(3), mask=[1, 0, 0])]
)
def test_parts_are_numbers(part):
    adapter = ObservationAdapter.choose(NESTED, None, "the test")
    with pytest.raises(ValueError, match=r"observation part a has .*, expected numbers"):
        adapter.flatten({**OBSERVATION, "a": part})


def test_a_batch_has_a_row_for_each():
    adapter = ObservationAdapter.choose(NESTED, None, "the test")
    doubled = {"a": 2 * OBSERVATION["a"], "b": {k: 2 * v for k, v in OBSERVATION["b"].items()}}
    batch = adapter.flatten(stack([OBSERVATION, doubled]))
    row = adapter.flatten(OBSERVATION)
    assert np.array_equal(batch, np.stack([row, 2 * row]))
    empty = {"a": np.zeros((0, 3)), "b": {"x": np.zeros((0, 2, 2)), "y": np.zeros(0)}}
    assert adapter.flatten(empty).shape == (0, 8)


@pytest.mark.parametrize("rows", [(), (3,)])
def test_a_pure_concatenation_can_be_turned_back(rows):
    adapter = ObservationAdapter.choose(NESTED, ("b", "a"), "the test")
    vector = np.random.default_rng(0).normal(size=(*rows, 8))
    back = adapter.unflatten(vector)
    assert back["b"]["x"].shape == (*rows, 2, 2)
    assert back["b"]["y"].shape == rows
    assert np.array_equal(adapter.flatten(back), vector)


def test_chosen_parts_in_the_order_asked_for():
    adapter = ObservationAdapter.choose(NESTED, ("b",), "the test")
    assert adapter.flatten(OBSERVATION).tolist() == [4.0, 5.0, 6.0, 7.0, 8.0]
    with pytest.raises(ValueError, match=r"holds b/x \(2, 2\), b/y \(\) only"):
        adapter.unflatten(np.zeros(5))


def test_survives_json():
    adapter = ObservationAdapter.choose(NESTED, None, "the test")
    assert ObservationAdapter.from_json(adapter.to_json()) == adapter


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"a": np.zeros(3)}, r"has parts \['a'\], expected b/x among them"),
        ({**OBSERVATION, "a": np.zeros(4)}, r"part a has shape \(4,\), expected \(3,\)"),
        ({**OBSERVATION, "a": np.zeros((2, 2, 3))}, r"part a has shape \(2, 2, 3\)"),
        ({**OBSERVATION, "a": np.zeros((2, 3))}, r"part b/x has shape \(2, 2\), expected"),
    ],
)
def test_observations_of_other_shapes_are_refused(observation, message):
    adapter = ObservationAdapter.choose(NESTED, None, "the test")
    with pytest.raises(ValueError, match=message):
        adapter.flatten(observation)


def test_parts_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"parts \['a', 'b'\], expected \['a', 'goal'\] among"):
        ObservationAdapter.choose(NESTED, ("a", "goal"), "the test")
    image = spaces.Dict({"camera": spaces.Box(0, 255, (4, 4, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"the test: camera has observations .* are images"):
        ObservationAdapter.choose(image, None, "the test")


def test_a_wrapper_needs_something_to_flatten():
    import gymnasium as gym

    adapter = ObservationAdapter.choose(NESTED, None, "the test")
    with pytest.raises(ValueError, match="expected a Dict"):
        FlatObservations(gym.make("Pendulum-v1"), adapter)


def dict_dataset():
    """Two numbered episodes whose observations are {"up": x, "down": -x}."""
    buffers = [
        replace(b, observations={"up": b.observations[:, :1], "down": b.observations[:, 1:]})
        for b in numbered_episodes((3, 2), (True, False))
    ]
    return write_buffers(
        buffers, "test/parts-v0", observation_space=spaces.Dict({"up": box(1), "down": box(1)})
    )


@pytest.mark.parametrize("storage", ["memory", "memmap"])
def test_unknown_dicts_are_read_whole_and_a_summary_says_so(storage, recwarn):
    dataset = load_dataset(dict_dataset(), storage=storage, progress_bar=False)
    assert [str(one.message) for one in recwarn] == []
    assert dict(summary(dataset))["family"] == (
        "none known: observations are the vector of down (1,), up (1,); rewards and episodes as "
        "recorded, scores are raw returns"
    )
    assert dataset.states.tolist() == [[-x, x] for x in (0, 1, 2, 3, 100, 101, 102)]
    assert dataset.adapter.complete


def test_agents_take_dicts_and_vectors_also_after_loading(tmp_path):
    dataset = load_dataset(dict_dataset())
    agent = QGPO(CONFIGS["whitened"], seed=0, device="cpu").learn(dataset)
    agent.save(tmp_path / "agent")
    for known in (agent, QGPO.load(tmp_path / "agent", device="cpu")):
        single = known.predict({"up": np.ones(1), "down": -np.ones(1)}, deterministic=True)[0]
        assert single.shape == (1,)
        vector = known.predict(np.array([-1.0, 1.0]), deterministic=True)[0]
        assert np.array_equal(single, vector)
        several = known.predict({"up": np.ones((3, 1)), "down": -np.ones((3, 1))})[0]
        assert several.shape == (3, 1)


def test_a_new_training_forgets_the_dicts_of_the_former():
    agent = QGPO(CONFIGS["whitened"], seed=0, device="cpu")
    agent.learn(load_dataset(dict_dataset()), lambda *_: False)
    assert agent.adapter is not None
    agent.learn(load_dataset(write_buffers(numbered_episodes((4,), (True,)))), lambda *_: False)
    assert agent.adapter is None
    with pytest.raises(ValueError, match="not an array of numbers"):
        agent.predict({"up": np.ones(1), "down": -np.ones(1)})


def test_datasets_of_other_parts_do_not_concatenate():
    first = load_dataset(dict_dataset())
    other = replace(first, adapter=None)
    with pytest.raises(ValueError, match="cannot be concatenated"):
        first.concatenate([first, other])
    assert first.concatenate([first, first]).adapter == first.adapter

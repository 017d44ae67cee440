"""What a critic was found to be worth, in one line."""

from __future__ import annotations

import json
import re

import pytest
from factory import STACKED, WHITENED, make_dataset

from qgpo import QGPO
from qgpo.agents.guided import Verdict
from qgpo.stacking import Slope


def trained(config):
    return QGPO(config, device="cpu").learn(make_dataset((3,) * 12))


@pytest.mark.parametrize(
    ("weights", "slope", "confirmed", "text"),
    [
        ([0.0, 0.0], Slope(0.0, 0.0, 0.0), False, "do not confirm .* imitates"),
        ([0.2, 0.0], Slope(0.2, 0.07, 0.01), True, "hardly confirm .*2.9 standard errors.*tune"),
        ([0.2, 0.4], Slope(0.6, 0.05, 0.1), True, r"episodes confirm .*correlation 0.100, 12.0"),
    ],
)
def test_what_was_measured_is_said(weights, slope, confirmed, text):
    agent = trained(STACKED)
    stack = agent.critic.stack
    stack.set(stack.weights.new_tensor(weights), [slope, slope, slope])
    verdict = agent.verdict
    assert isinstance(verdict, Verdict)
    assert verdict.confirmed is confirmed
    assert list(verdict.weights.values()) == pytest.approx(weights)
    assert re.search(text, str(verdict))
    assert json.loads(json.dumps(verdict.as_dict()))["text"] == str(verdict)


def test_there_is_none_before_the_end_and_of_other_critics():
    assert trained(WHITENED).verdict is None
    agent = QGPO(STACKED, device="cpu")
    agent.learn(make_dataset(), lambda scope, _: scope["self"].progress["critic"] < 3)
    assert agent.verdict is None

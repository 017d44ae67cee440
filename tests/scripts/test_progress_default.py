"""Commands draw bars on terminals alone, unless they are asked to."""

from __future__ import annotations

import sys

import pytest

from qgpo.scripts import evaluate, train


class Stream:
    def __init__(self, terminal):
        self.terminal = terminal

    def isatty(self):
        return self.terminal

    def write(self, text):
        return len(text)

    def flush(self):
        pass


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    assert train.parse(["--agent", "BC"]).progress_bar is terminal
    assert train.parse(["--agent", "BC", "--progress-bar"]).progress_bar
    assert not train.parse(["--agent", "BC", "--no-progress-bar"]).progress_bar
    assert evaluate.Args(run=()).progress_bar is terminal

"""Trained agents in environments: evaluation and clips. Tables of many runs: `experiments`."""

"""Trained agents in environments: evaluation and video.

Recording episodes to learn from belongs in `envs.rollouts`, tables of many runs in `experiments`.
"""

"""Where datasets come from: local, downloaded, bundled, combined; and whether they are complete.

How episodes are played belongs in `envs.rollouts`, what an array means in `envs.data`.
"""

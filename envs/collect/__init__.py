"""Policies and their rollouts, as Minari datasets. Reading datasets belongs in `envs.store`."""

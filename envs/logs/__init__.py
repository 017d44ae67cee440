"""Recordings of one's own as Minari datasets: arrays, tables, LeRobot's folders, and their faults.

What a dataset is belongs in `envs.data`, where datasets come from in `envs.store`.
"""

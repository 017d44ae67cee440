"""Transitions as arrays: OfflineDataset, memory-mapped files, pictures of data.

Where datasets come from belongs in `envs.store`, what an environment is in `envs.tasks`.
"""

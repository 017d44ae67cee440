"""Transitions as arrays: OfflineDataset, memory maps, the local folder, pictures of data.

Where datasets come from belongs in `envs.store`.
"""

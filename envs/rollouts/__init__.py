"""Policies that make data, and the episodes that they play.

Writing and reading datasets belongs in `envs.store`, scoring trained agents in `envs.play`.
"""

"""A run as a thing: settings, train, tune, evaluate, write; and many of them, as a plan.

Command lines belong in `scripts`; what one agent does belongs in `agents`.
"""

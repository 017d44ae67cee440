"""What is known of tasks: environments, observation vectors, supported spaces, reference scores.

Datasets belong in `envs.data` and `envs.store`, playing in `envs.play`.
"""

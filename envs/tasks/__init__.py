"""Which environment a dataset means, which vector its observations are, which score counts.

Playing belongs in `envs.play`.
"""

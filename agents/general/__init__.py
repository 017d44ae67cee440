"""What the general models share: p(x) ~ q(x) exp(-beta E(x)) for any data and any energy.

Their configuration, how data are read, training and sampling. Each model's own file, one floor
above, has its networks: `agents.energy_guided` for vectors, `agents.images` for images.
"""

"""Images: the networks that guide them, colors that can be differentiated, measures of samples.

Tensors in, tensors out; images are (B, C, H, W) with pixels in [0, 1]. Where they come from is in
`qgpo.envs.images`, how they are learned in `qgpo.agents.images`.
"""

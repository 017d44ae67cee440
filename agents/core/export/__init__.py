"""A policy as one file of ONNX: recorded, translated operator by operator, and compared.

recording.py     what `act` computes, gradients included, for every size of the batch
graph.py         an ONNX graph under construction
translation.py   the steps of a recording become nodes of a graph
operators/       torch's operators in ONNX, by kind
policy.py        observation, noise and guidance scale to action; metadata; the comparison
"""

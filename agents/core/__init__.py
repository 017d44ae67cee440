"""The contract of every agent, once: OfflineAgent, stages and their loop, checkpoints, SB3's names.

What one method needs alone belongs in its agent's file; what the guided family shares, in
`agents.guided`.
"""

"""Where datasets come from: local, downloaded, bundled, combined; and whether they are whole.

How a policy is rolled out belongs in `envs.collect`, what an array means in `envs.data`.
"""

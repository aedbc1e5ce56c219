"""The method: networks, objectives, the latent-shard format, training and sampling. Start at
cascade.py.
"""

"""The method: networks, objectives, shards, training and sampling; start at cascade.py."""

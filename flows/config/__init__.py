"""One run as data: its run file, stage table and pretrained models."""

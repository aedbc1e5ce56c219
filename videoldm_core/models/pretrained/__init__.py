"""Readers of pretrained models: diffusers folders, single files, LoRAs."""

"""The parts of a model that a stage inherits or publishes."""

from collections.abc import Mapping
from pathlib import Path

Parts = Mapping[str, Path]  # weights by part: vae, unet, scheduler, temporal, ...

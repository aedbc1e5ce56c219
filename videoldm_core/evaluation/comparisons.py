"""What each kind of stage must prove on held-out clips; a stage row names its proof.

A proof measures published weights as sampling would load them, on each process's share of the
clips, and returns series of (seeds, clips); its claims say which series must beat which.
"""

from typing import Annotated

from pydantic import Field

from videoldm_core.evaluation.image import (
    BeatsBilinear,
    BeatsLinearDenoiser,
    ReconstructsFrames,
)
from videoldm_core.evaluation.video import (
    BeatsImageModel,
    SteadierDecoding,
    SteadierUpscaling,
    UsesFirstFrames,
    UsesKeyFrames,
)

AnyProof = Annotated[
    ReconstructsFrames
    | BeatsLinearDenoiser
    | BeatsImageModel
    | UsesFirstFrames
    | UsesKeyFrames
    | SteadierDecoding
    | BeatsBilinear
    | SteadierUpscaling,
    Field(discriminator="kind"),
]

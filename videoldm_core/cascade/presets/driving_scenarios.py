"""The driving cascade whose first frame can be arranged (§4.1, scenario simulation).

An image model is told where which cars are; the prediction model drives on, differently per seed.

Data: as for driving, and some hundred thousand single frames with boxes (NAME.json beside a video).
"""

from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.cascade.presets.driving import DRIVING
from videoldm_core.cascade.stage import Stage
from videoldm_core.evaluation.image import BeatsLinearDenoiser
from videoldm_core.objectives.denoising import Denoising

_CLASSES = ("car",)
_SCENARIO = Stage(
    name="scenario",
    paper="§4.1 (image model conditioned on boxes)",
    objective=Denoising(tokens=Vocabulary(labels=DRIVING.labels, box_classes=_CLASSES)),
    proves=BeatsLinearDenoiser(),
    starts_from=("image",),
    trains=("unet", "tokens"),
    reads="latents",
    frames=1,
    batch=256,
    steps=50_000,
    warmup=1_000,
)

DRIVING_SCENARIOS = DRIVING.model_copy(
    update={
        "name": "driving_scenarios",
        "box_classes": _CLASSES,
        "stages": (*DRIVING.stages, _SCENARIO),
        "roles": DRIVING.roles.model_copy(update={"first_frame": _SCENARIO.name}),
    }
)

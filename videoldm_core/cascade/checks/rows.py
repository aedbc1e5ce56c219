"""Whether each row of a table is one that its objective can train, checked before any is.

What two rows have in common is checked in handoffs.py, numbers in sizes.py.
"""

from typing import NamedTuple

from videoldm_core.cascade.stage import Preset, Stage
from videoldm_core.errors import UserError
from videoldm_core.objectives.denoising import Denoising


class Judged(NamedTuple):
    """The stages that a proof can measure."""

    objectives: tuple[str, ...]
    given: str
    is_temporal: bool  # new temporal layers are what it judges


PROVEN = {
    "reconstructs_frames": Judged(("autoencoding", "brought"), "nothing", False),
    "beats_linear_denoiser": Judged(("denoising",), "nothing", False),
    "beats_image_model": Judged(("denoising",), "nothing", True),
    "uses_first_frames": Judged(("denoising",), "first_frames", True),
    "uses_key_frames": Judged(("denoising",), "key_frames", True),
    "steadier_decoding": Judged(("temporal_decoding",), "nothing", False),
    "beats_bilinear": Judged(("denoising", "brought"), "low_resolution", False),
    "steadier_upscaling": Judged(("denoising",), "low_resolution", True),
}
# Parts that an objective trains, where that is no choice.
TRAINED = {
    "autoencoding": ("vae",),
    "temporal_decoding": ("vae", "temporal_decoder"),
    "brought": (),
}
OF_A_DENOISER = ("unet", "tokens", "temporal")


def check_rows(table: Preset) -> None:
    """Refuses a row whose fields do not fit its objective.

    Raises:
        UserError: names the stage, the field, its value and what was expected.
    """
    for stage in table.stages:
        _check_trains(stage)
        _check_reads(stage)
        _check_proof(stage)


def _check_trains(stage: Stage) -> None:
    """What a row says it trains is what the objective moves."""
    trains, objective = set(stage.trains), stage.objective
    if not isinstance(objective, Denoising):
        if trains != set(TRAINED[objective.kind]):
            _refuse(stage, "trains", list(stage.trains), f"{list(TRAINED[objective.kind])}")
        return
    has_phi = objective.alpha is not None
    can = [part for part in OF_A_DENOISER if part != "temporal" or has_phi]
    if not trains or not trains <= set(can):
        _refuse(stage, "trains", list(stage.trains), f"some of {can}")
    if has_phi and "temporal" not in trains:
        _refuse(stage, "trains", list(stage.trains), "'temporal' among them, as alpha is set")


def _check_reads(stage: Stage) -> None:
    """Latents are read by denoisers alone, at one size, and never cut into patches."""
    if stage.reads == "latents":
        if not isinstance(stage.objective, Denoising):
            _refuse(stage, "reads", stage.reads, "'pixels': it encodes frames itself")
        if stage.full_size:
            _refuse(stage, "full_size", True, "false: latents are of the base resolution")
    if stage.crop is not None and (
        stage.reads == "latents" or not isinstance(stage.objective, Denoising)
    ):
        _refuse(stage, "crop", stage.crop, "null: denoisers of pixels alone train on patches")


def _check_proof(stage: Stage) -> None:
    """A proof measures the kind of model that the row makes."""
    objective = stage.objective
    has_phi = isinstance(objective, Denoising) and objective.alpha is not None
    fitting = [
        proof
        for proof, judged in PROVEN.items()
        if objective.kind in judged.objectives
        and (stage.given.kind, has_phi) == (judged.given, judged.is_temporal)
    ]
    if stage.proves.kind not in fitting:
        expected = " or ".join(map(repr, fitting)) or "another kind of stage"
        _refuse(stage, "proves.kind", stage.proves.kind, expected)


def _refuse(stage: Stage, field: str, value: object, expected: str) -> None:
    raise UserError(
        f"stages.{stage.name}.{field} = {value!r} does not fit its objective "
        f"({stage.objective.kind}, given {stage.given.kind}); expected {expected}."
    )

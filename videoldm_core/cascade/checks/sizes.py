"""Whether the numbers of a table fit one another, checked before any video is opened.

Each number's own bounds are in its record; here are those that two rows, or a row and the video
format, have in common.
"""

from collections.abc import Callable

from videoldm_core.cascade.stage import Preset, Stage
from videoldm_core.diffusion.conditioning import FirstFrames, LowResolution
from videoldm_core.errors import UserError
from videoldm_core.objectives.autoencoding import Autoencoding
from videoldm_core.objectives.pretrained import Brought
from videoldm_core.training.start import micro_batches_per_step

STABLE_DIFFUSION_FACTOR = 8  # of every autoencoder of Stable Diffusion 1.x and 2.x


def check_sizes(table: Preset) -> None:
    """Refuses a table whose frames, patches and factors do not fit.

    Raises:
        UserError: names the stage, both numbers and what to change.
    """
    checks: tuple[Callable[[Stage, Preset], None], ...] = (
        _check_latents,
        _check_given_frames,
        _check_patch,
        _check_upscaling,
    )
    for stage in table.stages:
        for check in checks:
            check(stage, table)


def check_shares(table: Preset, processes: int) -> None:
    """Refuses a batch that the processes of a stage cannot share, or not in whole micro batches.

    Raises:
        UserError: names the stage, its batch and the number of processes.
    """
    for stage in table.stages:
        if not stage.steps:
            continue
        if stage.batch % processes:
            raise UserError(
                f"stages.{stage.name}.batch = {stage.batch} cannot be shared by {processes} "
                f"processes; choose a batch that {processes} divides, or another number of "
                "processes."
            )
        micro_batches_per_step(stage, processes)


def _check_latents(stage: Stage, table: Preset) -> None:
    """Whole frames are encoded: the autoencoder's factor divides their height and width."""
    factor = _latent_factor(stage)
    for side, length in (("height", table.video.height), ("width", table.video.width)):
        if length % factor:
            raise UserError(
                f"video.{side} = {length}: the autoencoder of the stage {stage.name!r} makes "
                f"latents {factor} times smaller; choose a multiple of {factor}."
            )


def _latent_factor(stage: Stage) -> int:
    objective = stage.objective
    if isinstance(objective, Autoencoding):
        return 2 ** (len(objective.network.widths) - 1)
    if isinstance(objective, Brought) and objective.model == "image":
        return STABLE_DIFFUSION_FACTOR
    return 1


def _check_given_frames(stage: Stage, table: Preset) -> None:
    """Of the frames of a stage that is given the first, some are left to predict."""
    given = stage.given
    if isinstance(given, FirstFrames) and stage.frames < len(given.weights):
        raise UserError(
            f"stages.{stage.name}.frames = {stage.frames}: up to {len(given.weights) - 1} first "
            f"frames are given, so that none would be left to predict; choose {len(given.weights)} "
            "or more."
        )


def _check_patch(stage: Stage, table: Preset) -> None:
    """A patch is no larger than a frame, and the factor of what is shrunk divides its side."""
    height, width = _frame_of(stage, table)
    if stage.crop is not None and stage.crop > min(height, width):
        raise UserError(
            f"stages.{stage.name}.crop = {stage.crop} is larger than the {height}x{width} frames "
            f"it is cut from; choose {min(height, width)} or less."
        )
    given = stage.given
    if not isinstance(given, LowResolution):
        return
    sides = (height, width) if stage.crop is None else (stage.crop, stage.crop)
    if any(side % given.factor for side in sides):
        what = "crop" if stage.crop is not None else "frames"
        raise UserError(
            f"The stage {stage.name!r} shrinks its {what} of {sides[0]}x{sides[1]} by "
            f"{given.factor}; choose sides that are multiples of {given.factor}."
        )


def _frame_of(stage: Stage, table: Preset) -> tuple[int, int]:
    """Height and width of the frames that a stage reads, px."""
    factor = table.video.upscale if stage.full_size else 1
    return table.video.height * factor, table.video.width * factor


def _check_upscaling(stage: Stage, table: Preset) -> None:
    """The upscaler learns the enlargement between the two sizes of the video format."""
    given = stage.given
    if (
        stage.name == table.roles.upscaler
        and isinstance(given, LowResolution)
        and given.factor != table.video.upscale
    ):
        raise UserError(
            f"The stage {stage.name!r} enlarges {given.factor} times, but video.upscale = "
            f"{table.video.upscale}; give both the same factor."
        )

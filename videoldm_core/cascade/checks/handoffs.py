"""What stages hand to one another, checked on the table alone, before anything is trained."""

from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.cascade.stage import Preset, Stage
from videoldm_core.diffusion.conditioning import KeyFrames
from videoldm_core.errors import UserError
from videoldm_core.objectives.autoencoding import Autoencoding
from videoldm_core.objectives.decoding import TemporalDecoding
from videoldm_core.objectives.denoising import Denoising
from videoldm_core.objectives.pretrained import Brought


def check_handoffs(table: Preset) -> None:
    """Refuses a table in which a stage starts from what is not there.

    Raises:
        UserError: names both sides of the first handoff that does not fit.
    """
    made: dict[str, set[str]] = {}
    for stage in table.stages:
        unknown = [parent for parent in stage.starts_from if parent not in made]
        if unknown:
            raise UserError(
                f"The stage {stage.name!r} starts from {unknown[0]!r}, which is no stage before "
                f"it; expected some of: {', '.join(made) or 'none'}."
            )
        inherited = set[str]().union(*(made[parent] for parent in stage.starts_from))
        missing = sorted(needed_parts(stage) - inherited)
        if missing:
            raise UserError(
                f"The stage {stage.name!r} needs {missing[0]!r} from what it starts from "
                f"({', '.join(stage.starts_from) or 'nothing'}), which makes "
                f"{', '.join(sorted(inherited)) or 'nothing'}; change starts_from."
            )
        _check_passes(stage)
        _check_alpha(stage, table)
        _check_tokens(stage, table)
        made[stage.name] = inherited | made_parts(stage)


def made_parts(stage: Stage) -> set[str]:
    """Parts that a stage publishes itself."""
    objective = stage.objective
    if isinstance(objective, Brought):
        own = {"unet", "scheduler", "vae" if objective.model == "image" else "own_vae"}
        return own | ({"encoder"} if objective.encoder else set())
    made = set(stage.trains)
    if isinstance(objective, Denoising) and "unet" in stage.trains:
        made.add("scheduler")
    return made


def needed_parts(stage: Stage) -> set[str]:
    """Parts that a stage must inherit."""
    objective = stage.objective
    if isinstance(objective, Autoencoding | Brought):
        return set()
    if isinstance(objective, TemporalDecoding):
        return {"vae"}
    needed = {"vae"} if stage.reads == "latents" else set()
    if "tokens" in stage.trains and objective.tokens is None:
        needed.add("tokens")
    return needed if objective.unet else needed | {"unet", "scheduler"}


def told_vocabulary(stage: Stage, table: Preset) -> Vocabulary | None:
    """What a stage's model will be told by tokens, its own or inherited; None: nothing.

    Says before anything is trained what stage_data.vocabulary_of says when it is.
    """
    return _tokens_of(stage, table) if isinstance(stage.objective, Denoising) else None


def _tokens_of(stage: Stage, table: Preset) -> Vocabulary | None:
    """The words of the tokens that a stage publishes or hands on; a later parent's win."""
    if isinstance(stage.objective, Denoising) and stage.objective.tokens is not None:
        return stage.objective.tokens
    inherited = [_tokens_of(table.stage(parent), table) for parent in stage.starts_from]
    return next((tokens for tokens in reversed(inherited) if tokens is not None), None)


def _check_passes(stage: Stage) -> None:
    """The place of a stride is the number of the pass, which sampling counts from the coarse one; a
    window is two key frames and what lies between (§3.3).
    """
    given = stage.given
    if not isinstance(given, KeyFrames):
        return
    every = given.every
    pairs = zip(stage.strides, stage.strides[1:], strict=False)
    finer = all(coarse == every * fine for coarse, fine in pairs)
    if not finer or stage.frames != every + 1:
        raise UserError(
            f"The stage {stage.name!r} is given every {every}th frame, but sees {stage.frames} "
            f"frames at strides {list(stage.strides)}; expected {every + 1} frames, and strides "
            f"each {every} times the next, as {[every, 1]}: change them, or given.every."
        )


def _check_alpha(stage: Stage, table: Preset) -> None:
    """An alpha per frame fits clips of one length."""
    for name in stage.starts_from:
        parent = table.stage(name)
        pair = [row.objective for row in (stage, parent)]
        alphas = [o.alpha for o in pair if isinstance(o, Denoising) and o.alpha]
        if len(alphas) < 2 or "per_frame" not in alphas:
            continue
        if alphas[0] != alphas[1] or stage.frames != parent.frames:
            raise UserError(
                f"The stage {stage.name!r} ({alphas[0]} alpha, {stage.frames} frames) cannot "
                f"start from the temporal layers of {name!r} ({alphas[1]} alpha, {parent.frames} "
                "frames): give both a scalar alpha or the same frames, or start from the image "
                "model."
            )


def _check_tokens(stage: Stage, table: Preset) -> None:
    """New tokens are of words that the data comes with, are trained, and boxes are of one frame."""
    objective = stage.objective
    if not isinstance(objective, Denoising) or objective.tokens is None:
        return
    if not table.vocabulary.holds(objective.tokens):
        raise UserError(
            f"The stage {stage.name!r} has tokens of labels or boxes that the preset "
            f"{table.name!r} does not know; name them there too, with the same values."
        )
    if "tokens" not in stage.trains:
        raise UserError(
            f"The stage {stage.name!r} has new tokens, but trains {', '.join(stage.trains)}; "
            "add 'tokens' to trains, or start from a stage that has them."
        )
    if objective.tokens.box_classes and stage.frames != 1:
        raise UserError(
            f"The stage {stage.name!r} learns boxes and reads {stage.frames} frames; boxes are "
            "annotated in single frames: set frames to 1."
        )

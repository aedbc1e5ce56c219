"""Refuses requests that need a state of a condition which a model's training never shows it.

A network answers for every text, label and mask, also for one that it never saw, and nothing in
the answer says so. What a request names or leaves out, and what guidance starts from, must be a
state that some training clips were in. Looks at the rows of the stage table alone.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.cascade.sampling import SamplingConfig
from videoldm_core.cascade.stage import Stage
from videoldm_core.diffusion.conditioning import FirstFrames, KeyFrames
from videoldm_core.errors import UserError
from videoldm_core.objectives.denoising import Denoising
from videoldm_core.sampling.guidance import Branch, Guidance, branches_of

RAISE, LOWER = "raise that above 0", "lower that below 1"


class Inputs(NamedTuple):
    """What a request gives the models to go by."""

    prompt: str = ""
    labels: Mapping[str, str] = {}  # name -> value
    has_boxes: bool = False  # says where things are, or that there are none
    has_first_frame: bool = False  # the user gives the first frame


class State(NamedTuple):
    """A state that a request needs of one condition of one model."""

    why: str  # what in the request needs it; a clause
    share: float  # of the training clips that are in it
    setting: str  # in the stage's row, with its value: what decides the share
    remedy: str  # what to do with that setting
    instead: str  # what else the request could say


@dataclass(frozen=True, kw_only=True)
class Use:
    """A model as a request uses it."""

    role: str
    stage: Stage
    objective: Denoising
    words: Vocabulary  # that the model is told by tokens
    inputs: Inputs
    roles: Mapping[str, Stage]
    setting: str  # of the guidance
    guidance: Guidance

    @property
    def branches(self) -> list[Branch]:
        """Predictions that are computed at every step."""
        takes_context = isinstance(self.objective.given, FirstFrames | KeyFrames)
        return branches_of(self.guidance, takes_context=takes_context)

    @property
    def text_scale(self) -> str:
        """The setting of text guidance and its value."""
        name = self.setting if self.role == "upscaler" else f"{self.setting}.text"
        return f"sampling.{name} = {self.guidance.text:g}"

    @property
    def starts_from_nothing(self) -> bool:
        """Whether guidance computes a prediction without text, labels and boxes."""
        return not all(branch.has_text for branch in self.branches)


def check_states(
    roles: Mapping[str, Stage],
    vocabularies: Mapping[str, Vocabulary | None],
    inputs: Inputs,
    sampling: SamplingConfig,
) -> None:
    """Refuses a request that puts a model into a state which its training never shows.

    Args:
        roles: the stage of every role that the request uses.
        vocabularies: what the model of a role is told by tokens; None, or no entry: nothing.

    Raises:
        UserError: names the first such state, the stage, its setting, and what to do.
    """
    for role, stage in roles.items():
        if not isinstance(stage.objective, Denoising):
            continue
        setting, guidance = sampling.guidance_of(role)
        use = Use(
            role=role,
            stage=stage,
            objective=stage.objective,
            words=vocabularies.get(role) or Vocabulary(),
            inputs=inputs,
            roles=roles,
            setting=setting,
            guidance=guidance,
        )
        for states in CONDITIONS:
            for state in states(use):
                _check(state, stage)


def _check(state: State, stage: Stage) -> None:
    if not state.share:
        raise UserError(
            f"{state.why}, but the stage {stage.name!r} is never trained so (stages.{stage.name}."
            f"{state.setting}): {state.remedy} and train it, or {state.instead}."
        )


def _texts(use: Use) -> Iterator[State]:
    """The prompt, and the empty text that text guidance starts from."""
    share = use.objective.text_dropout
    setting = f"objective.text_dropout = {share:g}"
    if use.starts_from_nothing:
        why = f"{use.text_scale} starts from the empty text"
        yield State(why, share, setting, RAISE, "set the guidance to 1")
    if use.inputs.prompt:
        why = f"The request has the prompt {use.inputs.prompt!r}"
        yield State(why, 1 - share, setting, LOWER, "leave the prompt empty")


def _labels(use: Use) -> Iterator[State]:
    """Labels that are named, those that are left out, and the unknown ones of guidance."""
    share, given = use.objective.label_dropout, use.inputs.labels
    setting = f"objective.label_dropout = {share:g}"
    for name in (kind.name for kind in use.words.labels):
        if use.starts_from_nothing:
            why = f"{use.text_scale} starts from an unknown label {name!r}"
            yield State(why, share, setting, RAISE, "set the guidance to 1")
        if name in given:
            why = f"The request has the label {name!r} = {given[name]!r}"
            yield State(why, 1 - share, setting, LOWER, "leave the label out")
        else:
            why = f"The request leaves the label {name!r} unknown"
            yield State(why, share, setting, RAISE, f"give labels.{name} a value")


def _boxes(use: Use) -> Iterator[State]:
    """Boxes that are given or not; clips of several frames are trained on without any."""
    if not use.words.box_classes:
        return
    share, frames = use.objective.label_dropout, use.stage.frames
    setting = f"objective.label_dropout = {share:g}"
    if frames > 1:
        why = "The request has boxes, which are known of single frames alone"
        remedy, instead = "start it from a stage without boxes", "leave the boxes out"
        known = 0.0 if use.inputs.has_boxes else 1.0
        yield State(why, known, f"frames = {frames}", remedy, instead)
        return
    if use.starts_from_nothing:
        why = f"{use.text_scale} starts from unknown boxes"
        yield State(why, share, setting, RAISE, "set the guidance to 1")
    if use.inputs.has_boxes:
        yield State("The request has boxes", 1 - share, setting, LOWER, "leave the boxes out")
    else:
        why = "The request leaves boxes unknown"
        yield State(why, share, setting, RAISE, "give boxes, or boxes=[] for none")


def _given_frames(use: Use) -> Iterator[State]:
    """Numbers of given first frames, in calls and in guidance: p_S must draw each (§3.2)."""
    given = use.objective.given
    if not isinstance(given, FirstFrames):
        return
    has_first = use.inputs.has_first_frame or "first_frame" in use.roles
    used = {1 if has_first else 0: "Its first call", 2: "Every call after its first"}
    if not all(branch.has_context for branch in use.branches):
        used.setdefault(0, _both_scales(use))
    weights = ", ".join(f"{weight:g}" for weight in given.weights)
    for count, what in used.items():
        is_guidance = count == 0 and has_first
        yield State(
            f"{what} gives the key-frame model {count} frames",
            given.weights[count],
            f"objective.given.weights = [{weights}]",
            f"give {count} frames a weight above 0",
            "set both scales to 1" if is_guidance else "name another stage in roles.key_frames",
        )


def _key_frames(use: Use) -> Iterator[State]:
    """The key frames between which frames are made, and guidance without them (§3.3)."""
    given = use.objective.given
    if not isinstance(given, KeyFrames):
        return
    setting = f"objective.given.dropout = {given.dropout:g}"
    yield State("Interpolation gives key frames", 1 - given.dropout, setting, LOWER, "set passes=0")
    if not all(branch.has_context for branch in use.branches):
        why = f"{_both_scales(use)} gives the interpolator no key frames"
        yield State(why, given.dropout, setting, RAISE, "set both scales to 1")


def _both_scales(use: Use) -> str:
    """The guidance that also predicts without given frames."""
    guidance = use.guidance
    return f"sampling.{use.setting} of text {guidance.text:g} and context {guidance.context:g} also"


CONDITIONS: tuple[Callable[[Use], Iterator[State]], ...] = (
    _texts,
    _labels,
    _boxes,
    _given_frames,
    _key_frames,
)

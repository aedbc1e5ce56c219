"""Text guidance, context guidance (Eq. 4) and both together, as one weighted sum of predictions."""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from videoldm_core.diffusion.conditioning import Given
from videoldm_core.models.denoiser import Denoiser, predict
from videoldm_core.records import Record


class Guidance(Record):
    """Scales; 1 is the conditional model, more exaggerates what it is given."""

    text: float = Field(default=1.0, allow_inf_nan=False)
    context: float = Field(default=1.0, allow_inf_nan=False)  # s of Eq. 4


class Branch(NamedTuple):
    """One prediction of the sum: what it knows of the request, and its weight."""

    weight: float
    has_text: bool  # without: the empty text, labels and boxes unknown
    has_context: bool  # without: every frame masked


def branches_of(guidance: Guidance, *, takes_context: bool) -> list[Branch]:
    """The predictions that are computed: those whose weight is not 0.

    Args:
        takes_context: the model is given frames (c_S).
    """
    text, context = guidance.text, guidance.context
    if takes_context:
        branches = [
            Branch(context, True, True),
            Branch(text - context, True, False),
            Branch(1 - text, False, False),
        ]
    else:
        branches = [Branch(text, True, False), Branch(1 - text, False, False)]
    return [branch for branch in branches if branch.weight != 0]


def guided_prediction(  # noqa: PLR0913 - what a prediction depends on
    model: Denoiser,
    noisy: Tensor,
    timesteps: Tensor,
    *,
    text: Tensor,
    null_text: Tensor,
    given: Given,
    guidance: Guidance,
    label: Tensor | None = None,
    temporal_texts: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """f(0,0) + s_text (f(c,0) - f(0,0)) + s_context (f(c,c_S) - f(c,0)); Eq. 4 is s_text = 1.

    Collected by branch: s_context f(c,c_S) + (s_text - s_context) f(c,0) + (1 - s_text) f(0,0). A
    branch of weight 0 is not computed, the others run as one batch. Without context
    f(c,c_S) = f(c,0).

    Args:
        text, null_text: of the prompt and of the empty text, b l d.
        temporal_texts: both once more for the temporal layers; None: the same (§4.3, DreamBooth).
    """
    branches = branches_of(guidance, takes_context=given.context is not None)
    blind = given.without_context()
    temporal, null_temporal = temporal_texts or (None, None)
    texts = [text if branch.has_text else null_text for branch in branches]
    read = [temporal if branch.has_text else null_temporal for branch in branches]
    givens = [given if branch.has_context else blind for branch in branches]
    count = len(branches)
    predictions = predict(
        model.net,
        noisy.repeat(count, 1, 1, 1, 1),
        timesteps.repeat(count),
        torch.cat(texts),
        _joined(givens),
        None if label is None else label.repeat(count),
        temporal_text=_joined_texts(read),
    ).chunk(count)
    weighted = [branch.weight * p for branch, p in zip(branches, predictions, strict=True)]
    return torch.stack(weighted).sum(dim=0)


def _joined_texts(texts: list[Tensor | None]) -> Tensor | None:
    given = [text for text in texts if text is not None]
    return torch.cat(given) if given else None


def _joined(givens: list[Given]) -> Given:
    def cat(name: str) -> Tensor | None:
        values = [getattr(given, name) for given in givens]
        return None if values[0] is None else torch.cat(values)

    return Given(
        context=cat("context"),
        known=cat("known"),
        context_noise=cat("context_noise"),
        low_resolution=cat("low_resolution"),
        noise_level=cat("noise_level"),
    )

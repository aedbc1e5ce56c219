"""Text guidance, context guidance (Eq. 4) and both together, as one weighted sum of predictions."""

import torch
from pydantic import Field
from torch import Tensor

from videoldm_core.conditioning import Given
from videoldm_core.objectives.denoiser import Denoiser, predict
from videoldm_core.records import Record


class Guidance(Record):
    """Scales; 1 is the conditional model, more exaggerates what it is given."""

    text: float = Field(default=1.0, allow_inf_nan=False)
    context: float = Field(default=1.0, allow_inf_nan=False)  # s of Eq. 4


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
    has_context = given.context is not None
    blind = given.without_context()
    temporal, null_temporal = temporal_texts or (None, None)
    prompt, nothing = (text, temporal), (null_text, null_temporal)
    if has_context:
        branches = [
            (guidance.context, prompt, given),
            (guidance.text - guidance.context, prompt, blind),
            (1 - guidance.text, nothing, blind),
        ]
    else:
        branches = [(guidance.text, prompt, given), (1 - guidance.text, nothing, given)]
    branches = [branch for branch in branches if branch[0] != 0]
    count = len(branches)
    predictions = predict(
        model.net,
        noisy.repeat(count, 1, 1, 1, 1),
        timesteps.repeat(count),
        torch.cat([spatial for _, (spatial, _), _ in branches]),
        _joined([given for _, _, given in branches]),
        None if label is None else label.repeat(count),
        temporal_text=_joined_texts([read for _, (_, read), _ in branches]),
    ).chunk(count)
    weighted = [weight * p for (weight, _, _), p in zip(branches, predictions, strict=True)]
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

"""Labels and boxes as tokens beside those of the text, for the cross-attentions (§3.4, §5.5).

Like the class conditioning of Rombach 2022, §3.3, by cross-attention; saved alone. Deviation: the
labels reach the image model too, not only the temporal layers through their time embedding, for the
paper conditions both, and one way serves labels and boxes. An image model that was trained without
tokens is not the same model once it has some: a softmax over more tokens is another one, whatever
the tokens' start values are. It must be trained with them.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.diffusion.labels_boxes import FIRST_CLASS, Told, nothing_told
from videoldm_core.errors import UserError
from videoldm_core.models.video_unet import VideoUNet
from videoldm_core.models.weights import check_keys, read_tensors
from videoldm_core.records import load_record

CONFIG, WEIGHTS = "tokens.json", "tokens.safetensors"
FREQUENCIES = 8  # the finest Fourier feature has a period of 1/64 of the frame


class BoxTokens(nn.Module):
    """One token per box: an embedding of its class, and of its place by Fourier features."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.what = nn.Embedding(FIRST_CLASS + classes, width)
        first, last = nn.Linear(4 * 2 * FREQUENCIES, width), nn.Linear(width, width)
        # The place starts as large as the class, and both as a text of deviation 1. With PyTorch's
        # own start values it is a tenth of that, and where boxes are is hardly learned.
        for layer in (first, last):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.place = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, boxes: Tensor) -> Tensor:
        """Maps rows [what, x0, y0, x1, y1] (b k 5) to tokens (b k d)."""
        what = boxes[..., 0].long()
        turns = boxes[..., 1:, None] * 2.0 ** torch.arange(FREQUENCIES, device=boxes.device)
        waves = torch.cat([(torch.pi * turns).sin(), (torch.pi * turns).cos()], dim=-1)
        # What is no box has no place; its learned token alone says "unknown" or "no further box".
        is_box = (what >= FIRST_CLASS)[..., None]
        return self.what(what) + self.place(waves.flatten(-2)) * is_box


class ConditionTokens(nn.Module):
    """The tokens of a vocabulary: one per label, then one per place for a box.

    Args:
        width: of a token of the text, d.
    """

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.labels = nn.ModuleList(
            nn.Embedding(1 + len(kind.values), width) for kind in vocabulary.labels
        )
        self.boxes = (
            BoxTokens(len(vocabulary.box_classes), width) if vocabulary.box_classes else None
        )

    def forward(self, text: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
        """The whole condition b (l + n + k) d: the text b l d, then labels (b n) and boxes (b k 5).

        See `Told`. No mask is needed: what is unknown or absent has a token that says so.
        """
        tokens = [
            table(number)[:, None] for table, number in zip(self.labels, labels.T, strict=True)
        ]
        if self.boxes is not None:
            tokens.append(self.boxes(boxes))
        return torch.cat([text, *tokens], dim=1)

    def condition(self, text: Tensor, told: Told | None) -> Tensor:
        """The same for what is told of clips; None: everything is unknown."""
        if told is None:
            told = nothing_told(self.vocabulary, len(text))
        told = told.to(text.device)
        return self(text, told.labels, told.boxes)

    def save(self, folder: Path) -> None:
        """Writes tokens.json and tokens.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(self.vocabulary.model_dump_json(indent=2))
        tensors = {name: t.contiguous().cpu() for name, t in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS)

    def load(self, folder: Path) -> None:
        """Takes the weights in `folder`; box tokens that its model did not have keep their start
        values, so that a model of scenarios may start from one with labels alone.

        Raises:
            UserError: the words mean something else there, or the weights do not fit.
        """
        self.check(folder)
        self.load_state_dict(read_tensors(folder / WEIGHTS), strict=False)

    def check(self, folder: Path) -> None:
        """See `load`; of tokens on the meta device too, which cannot be filled."""
        theirs, own = load_vocabulary(folder), self.vocabulary
        if theirs.labels != own.labels or theirs.box_classes not in ((), own.box_classes):
            raise UserError(
                f"The tokens in {str(folder)!r} are of {_words(theirs)}, this stage's are of "
                f"{_words(own)}; train the stage from a parent with the same words, or from none."
            )
        tensors = read_tensors(folder / WEIGHTS)
        new = set() if theirs.box_classes else {k for k in self.state_dict() if "boxes" in k}
        check_keys(self.state_dict(), tensors, where=repr(str(folder / WEIGHTS)), may_miss=new)


class ConditionedUNet(nn.Module):
    """A video UNet with its tokens as one module, so that one engine trains and shards both."""

    def __init__(self, net: VideoUNet, tokens: ConditionTokens) -> None:
        super().__init__()
        self.net, self.tokens = net, tokens

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: Tensor,
        *,
        labels: Tensor,
        boxes: Tensor,
        temporal_text: Tensor | None = None,
        **given: Tensor | None,
    ) -> Tensor:
        """`VideoUNet.forward` with the tokens of labels (b n) and boxes (b k 5) beside the text."""
        if temporal_text is not None:
            temporal_text = self.tokens(temporal_text, labels, boxes)
        condition = self.tokens(text, labels, boxes)
        return self.net(noisy, timesteps, condition, temporal_text=temporal_text, **given)


def condition_tokens_for(
    unet: UNet2DConditionModel, vocabulary: Vocabulary, *, seed: int
) -> ConditionTokens:
    """New tokens as wide as the texts that `unet` reads; start values depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConditionTokens(vocabulary, unet.config.cross_attention_dim)


def load_tokens(folder: Path, unet: UNet2DConditionModel) -> ConditionTokens:
    """The tokens in `folder`, for a UNet that reads texts of their width.

    Raises:
        UserError: there are none, or they do not fit.
    """
    vocabulary = load_vocabulary(folder)
    with torch.device("meta"):  # costs nothing, however many words there are said to be
        shapes = condition_tokens_for(unet, vocabulary, seed=0)
    shapes.check(folder)
    tokens = condition_tokens_for(unet, vocabulary, seed=0)
    tokens.load(folder)
    return tokens


def load_vocabulary(folder: Path) -> Vocabulary:
    """What the tokens in `folder` are of.

    Raises:
        UserError: it holds no tokens.
    """
    return load_record(Vocabulary, folder / CONFIG, what="description of tokens")


def _words(vocabulary: Vocabulary) -> str:
    labels = [f"{kind.name} ({', '.join(kind.values)})" for kind in vocabulary.labels]
    classes = [f"boxes ({', '.join(vocabulary.box_classes)})"] if vocabulary.box_classes else []
    return " and ".join(labels + classes) or "nothing"

"""The frozen text encoder: an OpenCLIP text tower that returns one hidden state per token.

Built at random from a seed, or kept in a folder of its own; see open_clip_text.py and clip_text.py
for those that others have trained.
open_clip is imported when a tower is made, never before: training reads stored embeddings.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import save
from torch import Tensor, nn

from videoldm_core.errors import UserError, reason_of
from videoldm_core.models.weights import check_keys, read_checkpoint
from videoldm_core.records import Record, parse_record
from videoldm_core.system.files import write_bytes_atomically, write_text_atomically
from videoldm_core.system.plain_json import read_json

CLIP_VOCABULARY = 49408  # OpenCLIP's byte-pair vocabulary, with its start and end tokens
MOST_WIDTH = 16_384
_END_OF_TEXT = CLIP_VOCABULARY - 1
Activation = Literal["gelu", "quick_gelu"]
Output = Literal["last", "penultimate"]
Padding = Literal["zero", "end_of_text"]
TEXT_KEYS = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.")


class TextConfig(Record):
    """The shape of a text tower and which of its states are the conditioning."""

    # Tokens per caption; longer captions are cut.
    context_length: int = Field(default=77, ge=2, le=1024)
    width: int = Field(default=768, ge=1, le=MOST_WIDTH)  # the embedding dimension d
    heads: int = Field(default=12, ge=1, le=MOST_WIDTH)
    layers: int = Field(default=12, ge=1, le=200)
    output: Output = "last"  # layer; SD 2.x reads the penultimate
    vocab_size: int = Field(default=CLIP_VOCABULARY, ge=CLIP_VOCABULARY, le=1_000_000)
    seed: int = 0  # of random weights; loaded weights ignore it
    activation: Activation = "gelu"  # OpenAI's own weights need quick_gelu
    padding: Padding = "zero"  # SD 1.x pads with the end token

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.output == "penultimate" and self.layers < 2:
            raise ValueError("output 'penultimate' needs at least 2 layers")
        return self


class TextTower(nn.Module):
    """Captions in, per-token hidden states out; always frozen and in evaluation mode."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        from open_clip.transformer import QuickGELU, TextTransformer

        self.config = config
        self.transformer = TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            proj_type="none",
            act_layer=QuickGELU if config.activation == "quick_gelu" else nn.GELU,
        )
        self.requires_grad_(False)
        super().train(False)

    @classmethod
    def build(cls, config: TextConfig) -> Self:
        """A randomly initialised tower: the same config gives the same bits."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(config)

    @classmethod
    def of_weights(cls, config: TextConfig, weights: Mapping[str, Tensor], *, where: str) -> Self:
        """A tower that holds `weights`, in float32; built once it is known that they fit.

        Raises:
            UserError: names the first key that is missing, unknown or of another shape or type.
        """
        with torch.device("meta"):
            shapes = dict(cls(config)._weights())
        check_keys(shapes, weights, where=where)
        tower = cls.build(config)
        tower.transformer.load_state_dict({name: t.float() for name, t in weights.items()})
        return tower

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The tower that `save` wrote into `folder`.

        Raises:
            UserError: a file is missing, damaged or does not fit the other; names file and key.
        """
        path = folder / "config.json"
        try:
            values = read_json(path)
        except (OSError, ValueError) as error:
            raise _unreadable(
                path, error, "a text tower folder holds config.json and model.safetensors"
            ) from error
        config = parse_record(TextConfig, values, where=f"text tower {str(path)!r}")
        weights = folder / "model.safetensors"
        where = f"Text weights {str(weights)!r}"
        return cls.of_weights(config, read_text_weights(weights), where=where)

    def save(self, folder: Path) -> None:
        """Writes model.safetensors, then config.json; `load` reads them back to the bit."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self._weights()}
        write_bytes_atomically(folder / "model.safetensors", save(tensors))
        write_text_atomically(folder / "config.json", self.config.model_dump_json(indent=2) + "\n")

    @property
    def dimension(self) -> int:
        """d: the size of one token's hidden state."""
        return self.config.width

    def digest(self) -> str:
        """Hex SHA-256 of everything that decides what `encode` returns."""
        total = hashlib.sha256(self.config.model_dump_json(exclude={"seed"}).encode())
        for name, tensor in self._weights():
            total.update(f"{name} {list(tensor.shape)}\n".encode())
            total.update(tensor.cpu().contiguous().numpy().tobytes())
        return total.hexdigest()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode whatever a parent module asks for."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """Hidden states after the final layer norm, float32 `b l d`; "" is the unconditional text.

        Captions pass one at a time, so that no bit of an embedding depends on its neighbours.
        """
        assert captions, "encode needs at least one caption"
        tokens = self.tokenize(captions).to(self.transformer.positional_embedding.device)
        return torch.cat([self(caption) for caption in tokens.split(1)]).float()

    def tokenize(self, captions: list[str]) -> Tensor:
        """OpenCLIP's token ids `b l`: cut to the context length, an end token kept, and padded."""
        from open_clip.tokenizer import tokenize

        tokens = tokenize(captions, context_length=self.config.context_length)
        if self.config.padding == "end_of_text":
            after_end = torch.arange(tokens.shape[1]) > tokens.argmax(dim=1, keepdim=True)
            tokens = tokens.masked_fill(after_end, _END_OF_TEXT)
        return tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalised hidden states `b l d` of token ids `b l`."""
        layer = self.config.layers - (1 if self.config.output == "last" else 2)
        states = self.transformer.forward_intermediates(
            tokens,
            indices=[layer],
            stop_early=True,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
        )
        return states["text_intermediates"][0]

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from sorted(self.transformer.state_dict().items())


def read_text_weights(path: Path) -> dict[str, Tensor]:
    """The text tower's tensors of a checkpoint by plain name."""
    found = read_checkpoint(path, lambda name: _plain_name(name) is not None)
    return {_plain_name(name) or name: tensor for name, tensor in found.items()}


def _plain_name(name: str) -> str | None:
    """`name` without wrappers' prefixes; None for what is not of the text tower's hidden states."""
    name = name.removeprefix("module.").removeprefix("text.")
    return name if name.startswith(TEXT_KEYS) else None


def _unreadable(path: Path, error: Exception, expected: str) -> UserError:
    return UserError(
        f"Cannot read {str(path)!r} ({reason_of(error)}): {expected}; "
        "check the path or get the file again."
    )

"""The text tower of a published OpenCLIP model, from a file or, if asked for, from the network."""

from pathlib import Path
from typing import Any, cast

from videoldm_core.errors import UserError, reason_of
from videoldm_core.models.text.encoder import (
    Activation,
    Output,
    Padding,
    TextConfig,
    TextTower,
    read_text_weights,
)
from videoldm_core.records import nearest

_PLAIN = {"context_length", "vocab_size", "width", "heads", "layers"}
_QUICK = "-quickgelu"  # how OpenCLIP names a model's twin with the other activation


def load_open_clip(
    model_name: str,
    path: Path,
    *,
    activation: Activation | None = None,
    output: Output = "last",
    padding: Padding = "zero",
) -> TextTower:
    """The text tower of a published OpenCLIP model (ViT-L-14, ViT-H-14, ...).

    Args:
        path: a checkpoint file (.safetensors or a plain state dict).
        activation: None where the model's name leaves no choice.

    Raises:
        UserError: unknown model, no activation where the name leaves a choice, or a file that is
            missing, damaged or of another model.
    """
    shape: dict[str, Any] = _settings(model_name)["text_cfg"]
    unsupported = sorted(set(shape) - _PLAIN)
    if unsupported:
        raise UserError(
            f"OpenCLIP model {model_name!r} has a text tower with {unsupported[0]!r}, which is not "
            "a plain CLIP text tower; choose one like ViT-L-14 or ViT-H-14."
        )
    activation = _activation_of_file(model_name, path, activation)
    config = TextConfig(**shape, output=output, padding=padding, activation=activation)
    where = f"Text weights {str(path)!r}"
    return TextTower.of_weights(config, read_text_weights(path), where=where)


def locate_open_clip(
    model_name: str, pretrained: str, *, activation: Activation | None, download: bool
) -> tuple[Path, Activation | None]:
    """Where the weights are on this machine, and the activation that they were trained with.

    Args:
        pretrained: a checkpoint file, or a published tag, which says its activation itself.
        activation: of a file; None: not told.
        download: allow the network; a tag without it is refused.

    Raises:
        UserError: unknown model or tag, a tag of another activation, or a download that failed.
    """
    import open_clip

    settings, path = _settings(model_name), Path(pretrained)
    if path.is_file():
        return path, activation
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if pretrained not in tags:
        raise UserError(
            f"No weights {pretrained!r} for {model_name}: neither a file nor one of its tags "
            f"({', '.join(tags) or 'it has none'}); give the path of a checkpoint file."
        )
    if not download:
        raise UserError(
            f"{pretrained!r} would be downloaded, which was not asked for; "
            f"give the path of a checkpoint file of {model_name}, or allow the download."
        )
    published = open_clip.get_pretrained_cfg(model_name, pretrained)
    is_quick = settings.get("quick_gelu", False) or published.get("quick_gelu", False)
    own: Activation = "quick_gelu" if is_quick else "gelu"
    if activation not in (None, own):
        raise UserError(
            f"{model_name} {pretrained!r} was trained with {own}, not with activation="
            f"{activation}; leave activation= out: a tag knows it."
        )
    try:
        return Path(open_clip.download_pretrained(published)), own
    except Exception as error:  # the transports' own errors too, which change with their versions
        raise UserError(
            f"Cannot download {model_name} {pretrained!r} ({reason_of(error)}); "
            "give the path of a checkpoint file."
        ) from error


def _settings(model_name: str) -> dict[str, Any]:
    import open_clip

    known = open_clip.list_models()
    if model_name not in known:
        raise UserError(f"Unknown OpenCLIP model {model_name!r}; {nearest(model_name, known)}")
    return cast("dict[str, Any]", open_clip.get_model_config(model_name))


def _activation_of_file(model_name: str, path: Path, told: Activation | None) -> Activation:
    """What was told; else the model's own, where OpenCLIP knows it with one activation only."""
    import open_clip

    if told is not None:
        return told
    if _settings(model_name).get("quick_gelu", False):
        return "quick_gelu"
    if model_name + _QUICK in open_clip.list_models():
        raise UserError(
            f"{str(path)!r} does not say which activation its {model_name} was trained with; set "
            "activation=quick_gelu (OpenAI's own weights) or activation=gelu (LAION's)."
        )
    return "gelu"

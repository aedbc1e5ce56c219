"""Reads how strongly a LoRA is added where its tensors do not say it, by the rules of peft."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from videoldm_core.errors import UserError
from videoldm_core.models.pretrained import lora_patterns
from videoldm_core.models.pretrained.folders import read_json
from videoldm_core.models.weights import read_metadata

Part = Literal["unet", "text_encoder"]
MOST_PATTERNS = 10_000
LONGEST_PATTERN = 1_000  # characters
PATTERN_SECONDS = 10  # of CPU time for all patterns of a file
# Values of init_lora_weights after which the base weights are others than the model's own.
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


def read_settings(path: Path, part: Part, *, is_peft: bool) -> dict[str, Any]:
    """The part's settings of peft: from the file's metadata, or from the config beside a peft file.

    Returns:
        Fields of peft's LoraConfig; empty where nobody wrote any.

    Raises:
        UserError: they are missing or damaged, or belong to weights that peft changed first.
    """
    metadata = read_metadata(path).get("lora_adapter_metadata")
    if metadata is not None:
        settings = _of_one_part(metadata, part, repr(str(path)))
    elif is_peft:
        settings = read_json(
            path.parent / "adapter_config.json", "it says the alpha of a peft file"
        )
    else:
        settings = {}
    _check_base(settings, repr(str(path)))
    return settings


def scales_of(
    settings: Mapping[str, Any], ranks: Mapping[str, int], where: str
) -> dict[str, float]:
    """The factor of up @ down for layers, given their ranks.

    It is alpha / r (Hu 2021), or alpha / sqrt(r) where trained so; 1 where nobody says an alpha.
    A layer's alpha and r are those of the first pattern that fits its name, as in peft.

    Args:
        ranks: r of the matrices in the file, by the layer's dotted name.

    Raises:
        UserError: an alpha is no number, a pattern no regular expression or one that takes too
            long, or r is another one than that of the matrices.
    """
    names = list(ranks)
    alphas = _by_pattern(settings, "alpha_pattern", "lora_alpha", names, where)
    expected = _by_pattern(settings, "rank_pattern", "r", names, where)
    is_root = bool(settings.get("use_rslora"))
    scales = {}
    for name, rank in ranks.items():
        if expected.get(name, rank) != rank:
            raise UserError(
                f"{where}: the matrices of {name!r} have rank {rank}, but its settings say "
                f"{expected[name]:g}; get the file again."
            )
        scales[name] = alphas.get(name, rank) / (math.sqrt(rank) if is_root else rank)
    return scales


def check_alpha(value: Any, what: str, where: str) -> float:
    """The value as a number that can scale matrices.

    Raises:
        UserError: it is something else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value):
        return value
    raise UserError(f"{where}: its {what} is {value!r}, expected a number.")


def _of_one_part(metadata: str, part: Part, where: str) -> dict[str, Any]:
    """Those of the settings "unet.lora_alpha" ... that are the part's; all where none is named."""
    try:
        values = json.loads(metadata)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(
            f"{where}: its lora_adapter_metadata is not a JSON object; get the file again."
        )
    if not any(name.startswith(("unet.", "text_encoder.")) for name in values):
        return values
    return {k.removeprefix(f"{part}."): v for k, v in values.items() if k.startswith(f"{part}.")}


def _check_base(settings: Mapping[str, Any], where: str) -> None:
    """Refuses matrices that are a difference to other weights than the model's."""
    begun = settings.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGES_BASE):
        raise UserError(
            f"{where}: its init_lora_weights is {begun!r}, so that its matrices are added to "
            "weights which peft changed before training; save it from peft with "
            "path_initial_model_for_weight_conversion, or give the model with it merged in."
        )


def _by_pattern(
    settings: Mapping[str, Any], patterns: str, default: str, names: list[str], where: str
) -> dict[str, float]:
    """A value per layer: of the first pattern that fits its name, of the name itself, or for all.

    The second is peft's too: a name with brackets in it is no pattern that fits itself.
    """
    values = settings.get(patterns) or {}
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: its {patterns} is {values!r}, expected an object.")
    numbers = {key: check_alpha(value, patterns, where) for key, value in values.items()}
    everywhere = settings.get(default)
    found: dict[str, float] = {}
    if everywhere is not None:
        found = dict.fromkeys(names, check_alpha(everywhere, default, where))
    if not numbers or not names:
        return found
    found |= {name: numbers[name] for name in names if name in numbers}
    matches = _first_matches(list(numbers), names, f"{where}: its {patterns}")
    return found | {name: numbers[key] for name, key in matches.items()}


def _first_matches(patterns: list[str], names: list[str], what: str) -> dict[str, str]:
    """The first pattern that fits, for every name that one fits."""
    if len(patterns) > MOST_PATTERNS:
        raise UserError(f"{what} has {len(patterns)} patterns, expected at most {MOST_PATTERNS}.")
    longest = max(patterns, key=len)
    if len(longest) > LONGEST_PATTERN:
        raise UserError(
            f"{what} has a pattern of {len(longest)} characters, {longest[:40]!r}..., expected at "
            f"most {LONGEST_PATTERN}."
        )
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "ignore", lora_patterns.__file__, str(PATTERN_SECONDS)],
        input=json.dumps([patterns, names]),
        capture_output=True,
        text=True,
        check=False,
    )
    matches: dict[str, str] = {}
    lines = answer.stdout.split("\n")[:-1]  # whole ones
    for pattern, line in zip(patterns, lines, strict=False):
        found = json.loads(line)
        if isinstance(found, str):
            raise UserError(
                f"{what} has {pattern!r}, which is no regular expression ({found}); get the file "
                "again."
            )
        matches |= {names[number]: pattern for number in found}
    for pattern in patterns[len(lines) :]:  # the process was ended at the first of them
        raise UserError(
            f"{what} has {pattern!r}, a regular expression that takes more than "
            f"{PATTERN_SECONDS} s or {lora_patterns.MEMORY_BYTES >> 20} MiB to match layers with; "
            "write it without nested repetitions, or give the model with the LoRA merged in."
        )
    return matches

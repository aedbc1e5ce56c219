"""The text tower: the same bits from a seed and from its folder, whatever surrounds it."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from videoldm_core.errors import UserError
from videoldm_core.models.text.encoder import TextConfig, TextTower

CAPTIONS = ["a red car overtakes at night", "", "rain " * 200]
SMALL = TextConfig(context_length=16, width=32, heads=2, layers=3, seed=5)


@pytest.fixture(scope="module")
def tower() -> TextTower:
    return TextTower.build(SMALL)


def test_captions_become_one_float32_state_per_token(tower: TextTower) -> None:
    states = tower.encode(CAPTIONS)
    assert states.dtype == torch.float32
    assert states.shape == (3, 16, tower.dimension)
    assert torch.isfinite(states).all()


def test_different_captions_have_different_states(tower: TextTower) -> None:
    red, blue, empty = tower.encode(["a red car", "a blue car", ""])
    assert not torch.equal(red, blue)
    assert not torch.equal(red, empty)


def test_an_embedding_does_not_depend_on_its_neighbours(tower: TextTower) -> None:
    together = tower.encode(CAPTIONS)
    alone = torch.cat([tower.encode([caption]) for caption in CAPTIONS])
    assert torch.equal(together, alone)


def test_the_same_seed_gives_the_same_bits_and_leaves_global_randomness_alone(
    tower: TextTower,
) -> None:
    before = torch.random.get_rng_state()
    again = TextTower.build(SMALL)
    other = TextTower.build(SMALL.model_copy(update={"seed": 6}))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.digest() == tower.digest() != other.digest()
    assert torch.equal(again.encode(CAPTIONS), tower.encode(CAPTIONS))


def test_the_tower_stays_frozen_when_a_parent_trains(tower: TextTower) -> None:
    torch.nn.Sequential(tower).train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_long_captions_are_cut_and_still_end(tower: TextTower) -> None:
    long, short = tower.tokenize(["rain " * 200, "rain"])
    assert long[-1] == short[2] == 49407
    assert short[3:].eq(0).all()


def test_padding_with_the_end_token_changes_only_what_follows_the_end() -> None:
    padded = TextTower.build(SMALL.model_copy(update={"padding": "end_of_text"}))
    assert padded.tokenize(["rain"])[0, 2:].eq(49407).all()
    zero = TextTower.build(SMALL).encode(["rain"])
    assert torch.equal(padded.encode(["rain"])[:, :3], zero[:, :3])
    assert not torch.equal(padded.encode(["rain"])[:, 3:], zero[:, 3:])


def test_a_saved_tower_loads_to_the_bit(tower: TextTower, tmp_path: Path) -> None:
    tower.save(tmp_path / "text_tower")
    loaded = TextTower.load(tmp_path / "text_tower")
    assert loaded.config == SMALL
    assert loaded.digest() == tower.digest()
    assert torch.equal(loaded.encode(CAPTIONS), tower.encode(CAPTIONS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ln_final.weight": None}, "lacks 'ln_final.weight'"),
        (
            {"ln_final.weight": torch.zeros(7)},
            r": 'ln_final.weight' has shape \(7,\), expected \(32,\)",
        ),
        (
            {"transformer.resblocks.9.ln_1.bias": torch.zeros(32)},
            "holds 'transformer.resblocks.9.ln_1.bias', which",
        ),
        (
            {"ln_final.weight": torch.ones(32, dtype=torch.int8)},
            "'ln_final.weight' is of type int8, expected floating point",
        ),
    ],
)
def test_weights_of_another_tower_are_refused_by_key(
    tower: TextTower, tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    tower.save(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path)
    with pytest.raises(UserError, match=rf"Text weights '.*model\.safetensors'.*{message}"):
        TextTower.load(tmp_path)


def test_a_folder_without_a_tower_is_named(tower: TextTower, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read '.*config\.json' \(No such file"):
        TextTower.load(tmp_path)
    tower.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"Cannot read '.*model\.safetensors'"):
        TextTower.load(tmp_path)


def test_a_damaged_or_foreign_config_is_named(tower: TextTower, tmp_path: Path) -> None:
    tower.save(tmp_path)
    (tmp_path / "config.json").write_text('{"widht": 32}')
    with pytest.raises(
        UserError, match=r"config\.json': unknown key 'widht'; did you mean 'width'\?"
    ):
        TextTower.load(tmp_path)
    (tmp_path / "config.json").write_text('{"wid')
    with pytest.raises(UserError, match=r"Cannot read '.*config\.json'"):
        TextTower.load(tmp_path)


def test_a_shape_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValidationError, match="width 30 is not a multiple of heads 4"):
        TextConfig(width=30, heads=4)
    with pytest.raises(ValidationError, match="'penultimate' needs at least 2 layers"):
        TextConfig(layers=1, output="penultimate")

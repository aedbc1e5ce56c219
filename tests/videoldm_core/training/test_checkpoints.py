"""Checkpoints: complete or absent, exact, and refused in a sentence when they do not fit."""

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from videoldm_core.errors import UserError
from videoldm_core.training import checkpoints
from videoldm_core.training.checkpoints import (
    KEPT,
    latest_checkpoint,
    load_optimizers,
    load_weights,
    save_checkpoint,
)
from videoldm_core.training.ema import Ema
from videoldm_core.training.engine import TorchEngine
from videoldm_core.training.optimizer import OptimizerConfig
from videoldm_core.training.train_module import Player, trainable_parameters


def player(name: str = "denoiser", *, width: int = 3, seed: int = 0, starts_at: int = 0) -> Player:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, width))  # the first layer is frozen
    made = Player(
        name=name,
        module=module,
        trainable=trainable_parameters(module, [module[1]]),
        loss=lambda net, batch, turn: (torch.zeros(()), {}),
        optimizer=OptimizerConfig(lr=0.1),
        starts_at=starts_at,
    )
    return with_engine(made)


def with_engine(made: Player) -> Player:
    trainable = list(made.trainable.values())
    made.engine = TorchEngine(made.module, trainable, made.optimizer, bf16=False)
    made.ema = Ema(made.trainable, 0.9)
    return made


def learn(players: list[Player], start: int, steps: int) -> None:
    for step in range(start, steps):
        given = torch.randn(5, 2, generator=torch.Generator().manual_seed(step))
        for one in players:
            if step >= one.starts_at:
                one.engine.backward(one.engine(given).square().sum())
                one.engine.step()
                one.ema.update(one.steps_at(step + 1))


def state(one: Player) -> dict[str, torch.Tensor]:
    averages = {f"ema/{name}": t for name, t in one.ema.full().items()}
    return {name: t.clone() for name, t in one.module.state_dict().items()} | averages


def assert_same(one: Player, other: Player) -> None:
    expected = state(other)
    assert state(one).keys() == expected.keys()
    for name, tensor in state(one).items():
        assert torch.equal(tensor, expected[name]), name


def test_three_and_three_steps_with_a_restart_are_six_to_the_bit(tmp_path: Path):
    whole = [player("decoder"), player("critic", seed=1, starts_at=2)]
    learn(whole, 0, 6)
    first = [player("decoder"), player("critic", seed=1, starts_at=2)]
    learn(first, 0, 3)
    save_checkpoint(tmp_path, first, 3)

    found = latest_checkpoint(tmp_path)
    assert found == (tmp_path / "step_00000003", 3)
    later = [player("decoder"), player("critic", seed=1, starts_at=2)]
    load_weights(found[0], later)
    for one in later:
        with_engine(one)
    load_optimizers(found[0], later, found[1])
    learn(later, 3, 6)
    for one, other in zip(later, whole, strict=True):
        assert_same(one, other)


def test_going_on_without_the_optimizers_state_would_differ(tmp_path: Path):
    """Guards the test above: moments matter here."""
    whole, first = player(), player()
    learn([whole], 0, 6)
    learn([first], 0, 3)
    save_checkpoint(tmp_path, [first], 3)
    later = player()
    load_weights(tmp_path / "step_00000003", [later])
    learn([with_engine(later)], 3, 6)
    assert not torch.equal(later.module[1].weight, whole.module[1].weight)  # type: ignore[index]


def test_a_player_that_has_not_started_is_kept_without_moments(tmp_path: Path):
    critic = player("critic", starts_at=5)
    save_checkpoint(tmp_path, [critic], 3)
    tensors = load_file(tmp_path / "step_00000003" / "critic.safetensors")
    assert {name.split("/")[0] for name in tensors} == {"weight", "ema"}
    later = player("critic", seed=9, starts_at=5)
    load_weights(tmp_path / "step_00000003", [later])
    load_optimizers(tmp_path / "step_00000003", [with_engine(later)], 3)
    assert torch.equal(later.trainable["1.weight"], critic.trainable["1.weight"])


def test_frozen_weights_are_not_in_a_checkpoint(tmp_path: Path):
    save_checkpoint(tmp_path, [player()], 1)
    tensors = load_file(tmp_path / "step_00000001" / "denoiser.safetensors")
    assert not any(name.endswith(("/0.weight", "/0.bias")) for name in tensors)


def test_there_is_none_at_first(tmp_path: Path):
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_only_the_newest_are_kept(tmp_path: Path):
    one = player()
    for step in (1, 9, 10, 100):
        save_checkpoint(tmp_path, [one], step)
    assert KEPT == 2
    assert sorted(os.listdir(tmp_path)) == ["step_00000010", "step_00000100"]
    assert latest_checkpoint(tmp_path) == (tmp_path / "step_00000100", 100)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_crash_while_writing_leaves_the_former_checkpoint(tmp_path: Path, monkeypatch, error):
    players = [player("decoder"), player("critic")]
    save_checkpoint(tmp_path, players, 1)
    written = []

    def failing(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if written:
            raise error
        written.append(path)
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", failing)
        expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected):
            save_checkpoint(tmp_path, players, 2)
    assert len(written) == 1
    assert latest_checkpoint(tmp_path) == (tmp_path / "step_00000001", 1)
    load_weights(tmp_path / "step_00000001", players)

    save_checkpoint(tmp_path, players, 2)
    assert latest_checkpoint(tmp_path) == (tmp_path / "step_00000002", 2)


def test_a_folder_without_its_last_file_is_no_checkpoint(tmp_path: Path):
    save_checkpoint(tmp_path, [player()], 1)
    (tmp_path / "step_00000002").mkdir()
    assert latest_checkpoint(tmp_path) == (tmp_path / "step_00000001", 1)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (
            lambda path: truncate(path / "critic.safetensors"),
            r"critic\.safetensors has \d+ bytes, e",
        ),
        (
            lambda path: os.truncate(path / "critic.safetensors", 0),
            "critic.safetensors has 0 bytes",
        ),
        (lambda path: (path / "critic.safetensors").unlink(), r"it has no critic\.safetensors"),
        (lambda path: truncate(path / "complete.json"), r"its complete\.json is damaged"),
        (lambda path: os.truncate(path / "complete.json", 0), r"its complete\.json is damaged"),
    ],
    ids=["half a file", "an empty file", "no file", "half a note", "an empty note"],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, capsys, harm, why):
    players = [player("decoder"), player("critic")]
    save_checkpoint(tmp_path, players, 1)
    expected = state(players[1])
    learn(players, 1, 2)
    save_checkpoint(tmp_path, players, 2)
    harm(tmp_path / "step_00000002")
    assert latest_checkpoint(tmp_path) == (tmp_path / "step_00000001", 1)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert re.match(rf"Checkpoint '.*step_00000002' is passed over: {why}", said[0])

    load_weights(tmp_path / "step_00000001", players)
    assert torch.equal(players[1].module.state_dict()["1.weight"], expected["1.weight"])
    learn(players, 1, 2)
    save_checkpoint(tmp_path, players, 2)
    assert latest_checkpoint(tmp_path) == (tmp_path / "step_00000002", 2)
    assert capsys.readouterr().err == ""


def test_where_all_are_damaged_there_is_none(tmp_path: Path, capsys):
    for step in (1, 2):
        save_checkpoint(tmp_path, [player()], step)
    for path in tmp_path.glob("step_*/denoiser.safetensors"):
        truncate(path)
    assert latest_checkpoint(tmp_path) is None
    assert capsys.readouterr().err.count("is passed over") == 2


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(tmp_path: Path):
    for step in (10, 20):
        save_checkpoint(tmp_path, [player()], step)
    truncate(tmp_path / "step_00000020" / "denoiser.safetensors")
    save_checkpoint(tmp_path, [player()], 15)
    assert sorted(os.listdir(tmp_path)) == ["step_00000010", "step_00000015"]
    truncate(tmp_path / "step_00000015" / "denoiser.safetensors")
    save_checkpoint(tmp_path, [player()], 25)
    assert sorted(os.listdir(tmp_path)) == ["step_00000010", "step_00000025"]


def test_a_checkpoint_that_tells_no_sizes_is_read_as_before(tmp_path: Path):
    one = player()
    save_checkpoint(tmp_path, [one], 3)
    (tmp_path / "step_00000003" / "complete.json").write_text('{"step": 3}')
    assert latest_checkpoint(tmp_path) == (tmp_path / "step_00000003", 3)
    later = player(seed=9)
    load_weights(tmp_path / "step_00000003", [later])
    assert torch.equal(later.trainable["1.weight"], one.trainable["1.weight"])


def test_a_checkpoint_of_another_shape_is_refused_by_key(tmp_path: Path):
    save_checkpoint(tmp_path, [player(width=3)], 1)
    with pytest.raises(UserError, match=r"weight/1\.weight' has shape \(3, 4\), expected \(5, 4\)"):
        load_weights(tmp_path / "step_00000001", [player(width=5)])


def test_a_checkpoint_with_an_unknown_key_is_refused(tmp_path: Path):
    save_checkpoint(tmp_path, [player()], 1)
    path = tmp_path / "step_00000001" / "denoiser.safetensors"
    save_file(load_file(path) | {"weight/2.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"holds 'weight/2\.weight'"):
        load_weights(path.parent, [player()])


def test_a_checkpoint_without_a_player_is_refused(tmp_path: Path):
    save_checkpoint(tmp_path, [player("decoder")], 1)
    with pytest.raises(UserError, match=r"No weights at .*critic\.safetensors"):
        load_weights(tmp_path / "step_00000001", [player("critic")])


def test_a_truncated_checkpoint_is_refused(tmp_path: Path):
    save_checkpoint(tmp_path, [player()], 1)
    path = tmp_path / "step_00000001" / "denoiser.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_weights(path.parent, [player()])


@pytest.mark.parametrize("lost", ["ema/1.bias", "exp_avg_sq/1.weight"])
def test_a_checkpoint_that_lacks_a_state_is_refused(tmp_path: Path, lost: str):
    one = player()
    learn([one], 0, 1)
    save_checkpoint(tmp_path, [one], 1)
    path = tmp_path / "step_00000001" / "denoiser.safetensors"
    save_file({name: t for name, t in load_file(path).items() if name != lost}, path)
    with pytest.raises(UserError, match=r"delete .*run again"):
        load_optimizers(path.parent, [player()], 1)

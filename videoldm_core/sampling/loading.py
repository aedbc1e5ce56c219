"""The models of a release, one per role, from the folders of its stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.cascade.stage import Roles
from videoldm_core.diffusion.conditioning import (
    AnyGiven,
    FirstFrames,
    KeyFrames,
    LowResolution,
    Nothing,
)
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.jobs.published import PublishedStage, part_paths, read_published
from videoldm_core.memory.state import Precision
from videoldm_core.models.condition_tokens import load_vocabulary
from videoldm_core.models.denoiser import Denoiser, load_denoiser
from videoldm_core.models.image import load_unet, load_vae, shrinking
from videoldm_core.models.parts import Parts
from videoldm_core.models.pretrained.folders import CONFIG, on_meta, read_config
from videoldm_core.models.pretrained.single_file import Predicts
from videoldm_core.models.pretrained.stable_diffusion import ImageModel
from videoldm_core.models.video_decoder import VideoDecoder, temporal_decoder_for
from videoldm_core.models.weights import hold_frozen_in_bf16
from videoldm_core.objectives.denoising import Denoising
from videoldm_core.sampling.clip_sampler import RoleModel
from videoldm_core.sampling.pipeline import Cascade

# What the model of a role may have been trained to be given.
GIVEN = {
    "first_frame": (Nothing,),
    "key_frames": (Nothing, FirstFrames),
    "interpolator": (KeyFrames,),
    "upscaler": (LowResolution,),
}


@dataclass(frozen=True, kw_only=True)
class Release:
    """The published stages of every role that is filled."""

    roles: Roles
    folders: Mapping[str, Path]  # by stage
    stages: dict[str, PublishedStage]  # by role

    def folder(self, role: str) -> Path:
        """Where the stage of `role` is."""
        return self.folders[getattr(self.roles, role)]

    def parts(self, role: str) -> Parts:
        """Weights of the stage of `role`."""
        return part_paths(self.folder(role))

    def given(self, role: str) -> AnyGiven:
        """What the model of `role` was trained to be given."""
        return self.stages[role].stage.given

    def vocabulary(self, role: str) -> Vocabulary | None:
        """What the model of `role` is told by tokens; None: nothing."""
        tokens = self.parts(role).get("tokens")
        return None if tokens is None else load_vocabulary(tokens)

    def schedule(self, role: str) -> NoiseSchedule:
        """The noise schedule of the model of `role`."""
        return NoiseSchedule.load(self.parts(role)["scheduler"])


def predicted_by(release: Release) -> Predicts:
    """What the image model of a release predicts, and so every fine-tune that may replace it."""
    role = "first_frame" if "first_frame" in release.stages else "key_frames"
    return cast(Predicts, release.schedule(role).predicts)


def read_release(roles: Roles, folders: Mapping[str, Path]) -> Release:
    """What the stages of all roles say of themselves; loads no weights.

    Raises:
        UserError: names the first role whose stage is not there, not trained or of another kind.
    """
    stages: dict[str, PublishedStage] = {}
    for role, name in roles.model_dump(exclude_none=True).items():
        found = read_published(folders[name]) if name in folders else None
        if found is None:
            where = f"not published in {str(folders[name])!r}" if name in folders else "not named"
            raise UserError(
                f"Sampling needs a trained {name!r} stage as {role}, which is {where}. "
                "Train it first."
            )
        _check_kind(role, found)
        stages[role] = found
    release = Release(roles=roles, folders=folders, stages=stages)
    if roles.first_frame and not isinstance(release.given("key_frames"), FirstFrames):
        raise UserError(
            f"roles.first_frame = {roles.first_frame!r}, but the key-frame model "
            f"{roles.key_frames!r} takes no first frame; leave the role first_frame out."
        )
    return release


def load_cascade(
    release: Release,
    device: torch.device,
    *,
    precision: Precision = "fp32",
    personal: ImageModel | None = None,
) -> Cascade:
    """Loads the models of every role; an image model that several stages share is loaded once.

    Args:
        precision: bf16: the weights of networks that run under autocast are held as it rounds
            them. Tokens of labels and boxes run outside it.
        personal: a fine-tune of the release's image model. It takes the place of the first frame's
            model, and of the UNet of the key-frame model and the interpolator where their stages
            trained temporal layers only: layers that were trained around the image model as it was
            fit its fine-tunes (§4.3). A stage that trained the UNet too keeps its own, as does
            the upscaler, which is another image model.

    Raises:
        UserError: weights are missing or damaged; `personal` has another shape or predicts
            something else.
    """
    loader = _Loader(release=release, device=device, precision=precision, personal=personal)
    vae = load_vae(release.parts("decoder")["vae"])
    temporal = temporal_decoder_for(vae, seed=0)
    temporal.load(release.parts("decoder")["temporal_decoder"])
    decoder = VideoDecoder(vae, temporal).eval().requires_grad_(False)
    return Cascade(
        first_frame=loader.optional("first_frame"),
        key_frames=loader.model("key_frames"),
        interpolator=loader.optional("interpolator"),
        decoder=loader.held(decoder).to(device),
        shrinks=shrinking(vae),
        upscaler=loader.optional("upscaler"),
    )


@dataclass(kw_only=True)
class _Loader:
    release: Release
    device: torch.device
    precision: Precision
    personal: ImageModel | None
    unets: dict[Path, UNet2DConditionModel] = field(default_factory=dict)

    def optional(self, role: str) -> RoleModel | None:
        return self.model(role) if role in self.release.stages else None

    def model(self, role: str) -> RoleModel:
        stage = self.release.stages[role].stage
        is_personal = self.personal is not None and self._may_be_personal(role)
        denoiser = self._denoiser(role, is_personal)
        self.held(denoiser.net)
        if denoiser.own_vae is not None:
            self.held(denoiser.own_vae)
        return RoleModel(
            denoiser=denoiser.to(self.device),
            frames=stage.frames,
            given=self.release.given(role),
            is_personal=is_personal,
        )

    def held(self, network: nn.Module) -> Any:
        """The same network, its weights held as its precision needs them."""
        if self.precision == "bf16":
            hold_frozen_in_bf16(network)
        return network

    def _may_be_personal(self, role: str) -> bool:
        trained = self.release.stages[role].stage.trains
        around = role in ("key_frames", "interpolator") and "unet" not in trained
        return role == "first_frame" or around

    def _denoiser(self, role: str, is_personal: bool) -> Denoiser:
        parts = self.release.parts(role)
        path = parts["unet"]
        if is_personal and self.personal is not None:
            check_personal(self.personal, path, self.release.schedule(role).predicts)
            return load_denoiser(parts, unet=self.personal.unet)
        if path not in self.unets:
            self.unets[path] = load_unet(path)
        return load_denoiser(parts, unet=self.unets[path])


def check_personal(personal: ImageModel, replaced: Path, predicts: str) -> None:
    """Refuses an image model that the temporal layers around `replaced` cannot stand in.

    Raises:
        UserError: names the first weight of another shape, or what it predicts.
    """
    kind, config = read_config(replaced, UNet2DConditionModel)
    expected = on_meta(kind, config, where=repr(str(replaced / CONFIG))).state_dict()
    found = personal.unet.state_dict()
    for name in sorted(expected.keys() | found.keys()):
        shapes = [tuple(t[name].shape) if name in t else "none" for t in (found, expected)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"The backbone's UNet has another shape than the one it is to replace: {name!r} is "
                f"{shapes[0]}, expected {shapes[1]}; give a fine-tune of the same image model."
            )
    if personal.schedule.predicts != predicts:
        raise UserError(
            f"The backbone predicts {personal.schedule.predicts}, the model it is to replace "
            f"{predicts}; give a fine-tune of the same image model."
        )


def _check_kind(role: str, published: PublishedStage) -> None:
    name = published.stage.name
    if role == "decoder":
        if "temporal_decoder" not in published.parts:
            raise UserError(
                f"roles.decoder = {name!r}, which trained no temporal decoder; name one that did."
            )
        return
    objective = published.stage.objective
    if not isinstance(objective, Denoising) or not isinstance(objective.given, GIVEN[role]):
        kind = objective.given.kind if isinstance(objective, Denoising) else objective.kind
        expected = " or ".join(given.model_fields["kind"].default for given in GIVEN[role])
        raise UserError(
            f"roles.{role} = {name!r}, a model of {kind!r}; expected one that is given {expected}."
        )

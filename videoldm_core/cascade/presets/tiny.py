"""The cascade at 1/8 of the paper's text-to-video size, for two CPU cores.

Every stage trains in about a minute. 40x64 base frames at 16 per second (160x256 upscaled), key
frames one second apart, five per clip.
"""

from videoldm_core.cascade.stage import Preset, Roles, Stage, VideoFormat
from videoldm_core.diffusion.conditioning import FirstFrames, KeyFrames, LowResolution
from videoldm_core.evaluation.image import (
    BeatsBilinear,
    BeatsLinearDenoiser,
    ReconstructsFrames,
)
from videoldm_core.evaluation.video import (
    BeatsImageModel,
    SteadierDecoding,
    SteadierUpscaling,
    UsesFirstFrames,
    UsesKeyFrames,
)
from videoldm_core.models.discriminator import CriticConfig
from videoldm_core.models.image import AutoencoderConfig, UNetConfig
from videoldm_core.models.text.encoder import TextConfig
from videoldm_core.models.text.source import NewText
from videoldm_core.objectives.autoencoding import Autoencoding
from videoldm_core.objectives.decoding import TemporalDecoding
from videoldm_core.objectives.denoising import Denoising, ScheduleConfig
from videoldm_core.training.optimizer import OptimizerConfig

_TEXT = NewText(tower=TextConfig(context_length=16, width=64, heads=4, layers=2))
# Deviation: the last level is noise alone (Lin 2023), which the paper's schedules are not (§2).
_SCHEDULE = ScheduleConfig(predicts="v_prediction", zero_terminal_snr=True)
_KEY_STRIDE = 16
_LOW = LowResolution(factor=4, max_noise_timestep=150, detail_scale=8.0)
_KEYS = KeyFrames(every=4)

TINY = Preset(
    name="tiny",
    video=VideoFormat(fps=16, height=40, width=64, clip_seconds=8),
    text=_TEXT,
    roles=Roles(
        first_frame="image",
        key_frames="predictor",
        interpolator="interpolator",
        decoder="decoder",
        upscaler="upscaler",
    ),
    stages=(
        Stage(
            name="autoencoder",
            paper="§3.1.1 (stage 0; Rombach 2022)",
            objective=Autoencoding(
                network=AutoencoderConfig(widths=(16, 32, 64), layers_per_block=1, groups=8),
                kl_weight=1e-6,
            ),
            proves=ReconstructsFrames(),
            starts_from=(),
            trains=("vae",),
            reads="pixels",
            frames=1,
            batch=8,
            optimizer=OptimizerConfig(lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0),
            steps=1000,
            warmup=20,
            cooldown=500,
            ema=0.99,
        ),
        Stage(
            name="image",
            paper="§3.1 (stage 0; Rombach 2022)",
            objective=Denoising(
                unet=UNetConfig(
                    widths=(64, 96),
                    attention=(False, True),
                    layers_per_block=1,
                    heads=4,
                    text=_TEXT.width,
                    groups=16,
                ),
                schedule=_SCHEDULE,
            ),
            proves=BeatsLinearDenoiser(),
            starts_from=("autoencoder",),
            trains=("unet",),
            reads="latents",
            frames=1,
            batch=16,
            optimizer=OptimizerConfig(lr=2e-3, betas=(0.9, 0.99)),
            steps=700,
            warmup=20,
            cooldown=350,
            ema=0.98,
        ),
        Stage(
            name="temporal",
            paper="§3.1, Eq. 2",
            objective=Denoising(alpha="scalar"),
            proves=BeatsImageModel(),
            starts_from=("image",),
            trains=("temporal",),
            reads="latents",
            frames=5,
            strides=(_KEY_STRIDE,),
            heldout_clips=16,
            batch=8,
            optimizer=OptimizerConfig(lr=2e-3, betas=(0.9, 0.99)),
            steps=160,
            warmup=20,
            cooldown=80,
            ema=0.98,
        ),
        Stage(
            name="predictor",
            paper="§3.2, Eq. 3-4",
            objective=Denoising(alpha="scalar", given=FirstFrames(), context_reach=4),
            proves=UsesFirstFrames(),
            starts_from=("temporal",),
            trains=("temporal",),
            reads="latents",
            frames=5,
            strides=(_KEY_STRIDE,),
            heldout_clips=16,
            batch=8,
            optimizer=OptimizerConfig(lr=2e-3, betas=(0.9, 0.99)),
            steps=160,
            warmup=20,
            cooldown=80,
            ema=0.98,
        ),
        Stage(
            name="interpolator",
            paper="§3.3",
            objective=Denoising(alpha="scalar", given=_KEYS, context_reach=4),
            proves=UsesKeyFrames(),
            starts_from=("temporal",),
            trains=("unet", "temporal"),  # all, as the paper does for text-to-video
            reads="latents",
            frames=5,
            strides=(4, 1),
            heldout_clips=16,
            batch=4,
            optimizer=OptimizerConfig(lr=2e-3, betas=(0.9, 0.99)),
            steps=240,
            warmup=20,
            cooldown=120,
            ema=0.98,
        ),
        Stage(
            name="decoder",
            paper="§3.1.1",
            objective=TemporalDecoding(
                critic=CriticConfig(width=16, layers=2),
                critic_weight=0.1,
                critic_starts_at=80,
                temporal_weight=1.0,
            ),
            proves=SteadierDecoding(),
            starts_from=("autoencoder",),
            trains=("vae", "temporal_decoder"),
            reads="pixels",
            frames=5,
            batch=4,
            optimizer=OptimizerConfig(lr=1e-3, betas=(0.5, 0.9), weight_decay=0.0),
            steps=160,
            warmup=10,
            cooldown=80,
            ema=0.98,
        ),
        Stage(
            name="image_upscaler",
            paper="§3.4 (image model)",
            objective=Denoising(
                given=_LOW,
                unet=UNetConfig(
                    in_channels=6,
                    out_channels=3,
                    widths=(16, 32, 48),
                    attention=(False, False, False),
                    layers_per_block=1,
                    text=_TEXT.width,
                    groups=8,
                    told_noise_level=True,
                ),
                schedule=_SCHEDULE,
            ),
            proves=BeatsBilinear(),
            starts_from=(),
            trains=("unet",),
            reads="pixels",
            full_size=True,
            frames=1,
            crop=48,
            heldout_clips=16,
            batch=8,
            optimizer=OptimizerConfig(lr=2e-3, betas=(0.9, 0.99)),
            steps=800,
            warmup=20,
            cooldown=400,
            ema=0.98,
        ),
        Stage(
            name="upscaler",
            paper="§3.4, Eq. 5",
            objective=Denoising(alpha="scalar", given=_LOW),
            proves=SteadierUpscaling(),
            starts_from=("image_upscaler",),
            trains=("temporal",),
            reads="pixels",
            full_size=True,
            frames=5,
            crop=48,
            heldout_clips=6,
            batch=4,
            optimizer=OptimizerConfig(lr=3e-4, betas=(0.9, 0.99)),
            steps=160,
            warmup=10,
            cooldown=80,
            ema=0.98,
        ),
    ),
)

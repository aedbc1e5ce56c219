"""What the committed run files ask of sampling."""

from flows.config.load import load_run, sampling_of


def test_the_x4_upscaler_is_sampled_as_diffusers_does_and_upscalers_of_ours_unguided():
    sampling = sampling_of(load_run("text_to_video"))
    assert (sampling.upscale_guidance, sampling.upscale_steps) == (9, 75)
    for name in ("driving", "tiny"):
        assert sampling_of(load_run(name)).upscale_guidance == 1

"""HDR becomes SDR, in the right light and colours, from every bit depth; SDR is left alone."""

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation, VideoReformatter

from preprocessing.sources.folder import find_sources
from preprocessing.video.damage import DecodeError
from preprocessing.video.decode import decode_frames, probe_video
from preprocessing.video.fit import RESIZER
from preprocessing.video.tone import PEAK_NITS, WHITE_NITS, Hdr, pq_code, pq_nits, to_sdr, toned

HEIGHT, WIDTH = 48, 64
BT709, PQ, HLG, BT2020, UNKNOWN, ICTCP = 1, 16, 18, 9, 2, 14  # of ISO 23091-2
NAMES = {PQ: "PQ", HLG: "HLG"}
TO_BT2020 = np.array(
    [[0.627404, 0.329283, 0.043313], [0.069097, 0.919540, 0.011362], [0.016391, 0.088013, 0.895595]]
)
LUMINANCE = np.array([0.2627, 0.6780, 0.0593])


def scene():
    """An SDR picture (h w 3) of soft colours and a white, BT.709, 0 to 1."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / 16
    waves = [np.sin(x + k) * np.cos(y * (1 + k / 3)) for k in range(3)]
    picture = 0.45 + 0.35 * np.stack(waves, -1)
    picture[:12, :16] = 1.0
    picture[-12:, -16:] = 0.0
    return picture


def light_of(picture):
    """Nits, in BT.2020's primaries, of an SDR picture whose white is WHITE_NITS."""
    return WHITE_NITS * picture**2.4 @ TO_BT2020.T


def hlg_code(nits):
    """The codes that an HLG display of 1000 nits shows as `nits` (h w 3): ITU-R BT.2100."""
    luminance = (nits @ LUMINANCE / 1000)[..., None]
    scene_light = nits / 1000 * np.maximum(luminance, 1e-9) ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    log = a * np.log(np.maximum(12 * scene_light - b, 1e-9)) + c
    return np.where(scene_light <= 1 / 12, np.sqrt(3 * scene_light), log)


def expected(nits):
    """8-bit BT.709 codes of light in BT.2020's primaries, by the definition, in doubles."""
    light = toned(nits) @ np.linalg.inv(TO_BT2020).T
    return 255 * light.clip(0, 1) ** (1 / 2.4)


def write(
    path,
    codes,
    transfer,
    *,
    codec="ffv1",
    pix_fmt="yuv444p12le",
    full=False,
    matrix=BT2020,
    frames=8,
):
    """Frames of RGB codes (h w 3), 0 to 1, as a video of BT.2020 YCbCr of constant weights."""
    luma = codes @ LUMINANCE
    blue, red = (codes[..., 2] - luma) / 1.8814, (codes[..., 0] - luma) / 1.4746
    scales = (65535, 65535, 0, 32768) if full else (219 * 256, 224 * 256, 16 * 256, 128 * 256)
    planes = [luma * scales[0] + scales[2]]
    planes += [chroma * scales[1] + scales[3] for chroma in (blue, red)]
    yuv = np.stack(planes, -1).round().clip(0, 65535).astype(np.uint16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, BT2020
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1 + full
        if codec == "libx265":
            display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(40000000,50)"
            params = f"log-level=none:crf=4:master-display={display}:max-cll=4000,400"
            stream.codec_context.options = {"x265-params": params}
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(yuv, "yuv444p16le")
            frame.colorspace, frame.color_range = BT2020, 1 + full
            container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode(None))
    return path


def shown(path, height=HEIGHT, width=WIDTH):
    return decode_frames(path, [0.25], height=height, width=width)[0]


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def test_light_of_codes_is_that_of_the_standards():
    assert pq_nits(np.array([0.0, 0.508078, 0.580689, 0.751827, 1.0])) == pytest.approx(
        [0, 100, 203, 1000, 10_000], rel=1e-4
    )
    assert pq_code(pq_nits(np.linspace(0, 1, 50))) == pytest.approx(np.linspace(0, 1, 50), abs=1e-5)


def test_light_below_the_knee_is_kept_and_the_peak_becomes_white():
    nits = np.array([0.0, 1, 10, 50, 87])
    assert toned(nits) * WHITE_NITS == pytest.approx(nits)
    assert toned(np.array([PEAK_NITS, 4000.0])) == pytest.approx(1)
    every = toned(np.geomspace(0.01, PEAK_NITS, 500))
    assert (np.diff(every) > 0).all()


@pytest.mark.parametrize(
    ("transfer", "nits", "grey"),
    [("PQ", 100, 189), ("PQ", 203, 230), ("PQ", 1000, 255), ("PQ", 5000, 255), ("HLG", 203, 230)],
)
def test_greys_become_known_greys(transfer, nits, grey):
    """HLG's 75 % is 203 nits (ITU-R BT.2408)."""
    code = 0.75 if transfer == "HLG" else float(pq_code(nits))
    rgb = np.full((2, 2, 3), round(code * 65280), np.uint16)
    sdr = to_sdr(rgb, Hdr(transfer, BT2020, None, 65280))
    assert np.abs(sdr.astype(int) - grey).max() <= 1


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_any_colour_is_within_one_code_of_the_definition(transfer):
    nits = np.random.default_rng(0).uniform(0, 1, (150, 40, 3)) ** 4 * PEAK_NITS
    codes = pq_code(nits) if transfer == PQ else hlg_code(nits)
    codes = codes.clip(0, 1)
    rgb = (codes * 65280).round().astype(np.uint16)
    sdr = to_sdr(rgb, Hdr(NAMES[transfer], BT2020, None, 65280))
    is_within = (codes < 1).all(-1)  # HLG has no codes for colours that are bright and saturated
    assert is_within.mean() > 0.8
    assert np.abs(sdr - expected(nits))[is_within].max() < 1.1


@pytest.mark.parametrize("primaries", [BT2020, BT709, 12])
@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_greys_stay_grey_and_rise(primaries, transfer):
    ramp = np.repeat(np.arange(65536, dtype=np.uint16)[None, :, None], 3, 2)
    sdr = to_sdr(ramp, Hdr(transfer, primaries, None, 65280))[0].astype(int)
    assert np.abs(sdr - sdr[:, :1]).max() <= 1
    assert (np.diff(sdr[:, 1]) >= 0).all()
    assert len(set(sdr[:, 1])) == 256


FORMATS = [
    ("ffv1", "yuv420p10le", False),
    ("ffv1", "yuv420p12le", True),
    ("ffv1", "yuv444p10le", True),
    ("ffv1", "yuv444p12le", False),
    ("libx265", "yuv420p10le", False),  # with mastering metadata of 4000 nits
    ("libx265", "yuv420p12le", False),
]


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize(("codec", "pix_fmt", "full"), FORMATS)
def test_an_hdr_video_shows_what_its_sdr_twin_does(tmp_path, transfer, codec, pix_fmt, full):
    nits = light_of(scene())
    codes = pq_code(nits) if transfer == PQ else hlg_code(nits)
    path = write(tmp_path / "a.mkv", codes, transfer, codec=codec, pix_fmt=pix_fmt, full=full)
    assert f"HDR ({NAMES[transfer]}) is mapped to SDR" in probe_video(path).warnings
    least = 33 if "420" in pix_fmt else 45  # subsampled colours blur
    assert psnr(shown(path), expected(nits)) > least
    assert abs(np.mean(shown(path) - expected(nits))) < 0.4  # neither range is taken for the other
    twin = 255 * scene()
    assert shown(path).std() == pytest.approx(twin.std(), rel=0.1)
    dark = (scene() < 0.6).all(-1)  # below the knee nothing is changed
    assert psnr(shown(path)[dark], twin[dark]) > least - 5
    small, large = shown(path, 24, 32), shown(path, 96, 128)
    for other in (small, large):
        assert other.mean((0, 1)) == pytest.approx(expected(nits).mean((0, 1)), abs=3)


def test_an_hdr_video_without_a_colour_matrix_has_bt2020s(tmp_path):
    codes = pq_code(light_of(scene()))
    stated, unstated = (
        write(tmp_path / f"{matrix}.mkv", codes, PQ, matrix=matrix) for matrix in (BT2020, UNKNOWN)
    )
    assert np.array_equal(shown(stated), shown(unstated))


@pytest.mark.parametrize("transfer", [BT709, 14, UNKNOWN])
def test_bt2020_with_an_sdr_transfer_is_not_tone_mapped(tmp_path, transfer):
    path = write(tmp_path / "a.mkv", scene(), transfer, pix_fmt="yuv420p10le")
    assert probe_video(path).warnings == ()
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    plain = VideoReformatter().reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC)
    assert np.array_equal(shown(path), plain.to_ndarray())
    assert psnr(shown(path), 255 * scene()) > 33


def test_colours_that_cannot_be_read_are_said(tmp_path):
    path = write(tmp_path / "a.mkv", pq_code(light_of(scene())), PQ, matrix=ICTCP)
    with pytest.raises(DecodeError, match=r"^colours not read: .* \(matrix 14 in yuv444p12le\)$"):
        shown(path)


def test_the_admission_says_that_a_video_is_hdr(admit_folder, folder):
    write(folder / "hdr.mkv", pq_code(light_of(scene())), PQ, frames=80)
    notes = {video.name: video.notes for video in admit_folder(sources=find_sources(folder)).videos}
    assert "HDR (PQ) is mapped to SDR" in notes["hdr.mkv"]
    assert not any("HDR" in note for note in notes["good0.mp4"])


def test_the_curve_is_part_of_what_a_store_is():
    assert "BT.2390 per channel, 1000 to 203 nits" in RESIZER


@pytest.mark.parametrize(("name", "before", "now"), [("hdr_pq", 34.5, 95), ("hdr_hlg", 57.4, 80)])
def test_outside_hdr_videos_have_contrast_again(asset, name, before, now):
    """Their SDR original has a deviation of 122.9, of which they had the first number."""
    frames = decode_frames(asset(f"videos/reported/{name}.mp4"), [1.2], height=240, width=320)
    assert frames.std() > max(before, now - 1)

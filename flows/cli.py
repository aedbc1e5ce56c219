"""The command line: `videoldm COMMAND RUNFILE key=value ...`.

Every command does the same thing when repeated, says where its results are, and ends with one
sentence on a user's error. Imports what is slow only when a command needs it.
"""

import errno
import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.config.load import load_run
from flows.config.run import RunConfig
from flows.config.stage_table import table_of
from flows.runner.failures import StepsFailed
from flows.runner.proxies import keep_loopback_direct
from videoldm_core.errors import UserError, one_line

app = typer.Typer(
    name="videoldm",
    help="From a folder of videos to a trained, tracked and sampled video model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunFile = Annotated[str, typer.Argument(help="a committed run (tiny) or the path of a YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="changed fields of the run")
]
INTERRUPTED = 130  # exit code, as shells have it
NO_ROOM = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
# A path that cannot be read or written, or be at all: the error does not say which.
NOT_ALLOWED = (
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
)


def _answering(command: Callable[..., None]) -> Callable[..., None]:
    """Turns what a command raises into one sentence on stderr and an exit code."""

    @functools.wraps(command)
    def answering(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except UserError as error:
            raise _ended(str(error), 2) from None
        except StepsFailed as error:
            raise _ended(str(error), 1) from None
        except KeyboardInterrupt:
            raise _ended("stopped; the same command goes on from here.", INTERRUPTED) from None
        except OSError as error:
            if error.errno not in (*NO_ROOM, *NOT_ALLOWED):
                raise
            verb = "write" if error.errno in NO_ROOM else "use"
            place = error.filename or "the output folder"
            raise _ended(f"Cannot {verb} {str(place)!r}: {error.strerror}.", 2) from None

    return answering


def _ended(sentence: str, code: int) -> typer.Exit:
    print("\n".join(map(one_line, f"error: {sentence}".splitlines())), file=sys.stderr)
    return typer.Exit(code)


def _say(what: str, place: object) -> None:
    print(one_line(f"{what}: {place}"))


@app.command()
@_answering
def run(runfile: RunFile, overrides: Overrides = None) -> None:
    """Does all that is not done yet, from videos to the report.

    Example: videoldm run tiny videos=my_videos out=runs/mine
    """
    config = load_run(runfile, overrides)
    _work(config)


@app.command()
@_answering
def admit(runfile: RunFile, overrides: Overrides = None) -> None:
    """Says which videos are admitted, and what stages see.

    Example: videoldm admit tiny videos=my_videos
    """
    config = load_run(runfile, overrides)
    _work(config, only=("admission",))
    _say("Admission report", config.out / "admission.html")


@app.command()
@_answering
def encode(runfile: RunFile, overrides: Overrides = None) -> None:
    """Writes the pixel and latent shards.

    The image encoder must be trained.

    Example: videoldm encode tiny
    """
    config = load_run(runfile, overrides)
    _work(config, only=("pixels", "latents"))
    _say("Shards", f"{config.out / 'pixels'} and {config.out / 'latents'}")


@app.command()
@_answering
def train(
    stage: Annotated[str, typer.Argument(help="a stage of the preset: temporal, predictor ...")],
    runfile: RunFile,
    overrides: Overrides = None,
) -> None:
    """Trains one stage, or goes on with it.

    The stages it starts from must be trained.

    Example: videoldm train temporal tiny stages.temporal.steps=500
    """
    config = load_run(runfile, overrides)
    _work(config, only=(table_of(config).stage(stage).name,))
    _say(f"Stage {stage}", config.stage_folder(stage))


@app.command()
@_answering
def sample(
    runfile: RunFile,
    overrides: Overrides = None,
    to: Annotated[Path | None, typer.Option(help="the video; default OUT/video.mp4")] = None,
) -> None:
    """Samples a video with the whole trained cascade.

    An interrupted command goes on when it is given again. sample.first_frame=street.png is the
    picture to go on from, sample.futures=3 makes three videos of one first frame,
    sample.size=[48, 96] another size, sample.backbone=my_model a fine-tune's own look.

    Example: videoldm sample tiny sample.prompt="a bus in the rain" --to bus.mp4
    """
    config = load_run(runfile, overrides)
    from flows.runner.session import sample_to

    for video in sample_to(config, to):
        _say("Video", video)


@app.command()
@_answering
def evaluate(
    runfile: RunFile,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="one stage; default: all trained ones")] = None,
) -> None:
    """Measures trained stages on held-out clips once more.

    Example: videoldm evaluate tiny --stage temporal
    """
    from flows.runner import session

    session.evaluate(load_run(runfile, overrides), stage)


@app.command()
@_answering
def doctor(runfile: RunFile = "tiny", overrides: Overrides = None) -> None:
    """Checks this machine, and the memory that training will take, before anything is queued.

    Example: videoldm doctor tiny out=/scratch/runs/mine
    """
    from flows.doctor import examine, show, show_memory

    config = load_run(runfile, overrides)
    is_well = show(examine(config))
    show_memory(config)
    if not is_well:
        raise typer.Exit(1)


def main() -> None:
    """The entry point."""
    keep_loopback_direct()
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's stop is as orderly as a user's
    app()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _work(config: RunConfig, *, only: tuple[str, ...] = ()) -> None:
    from flows.runner.session import work

    work(config, only=only)


if __name__ == "__main__":
    main()

"""One step of preparing data, as a command: `python -m flows.steps.data request.json`.

In a process of its own, so that the flow never holds a network, and a crash is an exit code.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flows.config.pretrained import brought_model, run_with_texts
from flows.config.run import RunConfig
from flows.config.stage_table import table_of
from flows.launch import Command, Launcher
from flows.steps.graph import Attempt, Made
from videoldm_core.records import Record
from videoldm_core.system.command import run_command
from videoldm_core.system.files import PRIVATE, files_below, write_text_atomically
from videoldm_core.system.journal import Journal
from videoldm_core.system.machine import usable_cores

if TYPE_CHECKING:
    from preprocessing.encoding.stores import StoreRequest
    from videoldm_core.models.text.encoder import TextTower
    from videoldm_core.models.text.source import AnyText


class StepRequest(Record):
    """Which step of which run, and where to answer."""

    step: str
    run: RunConfig
    journal: Path
    answer: Path  # a Made, as JSON


def launch_step(step: str, attempt: Attempt, *, run: RunConfig, launcher: Launcher) -> Made:
    """Makes one step in a process of its own and answers what it made."""
    folder = run.out / "steps"
    request = StepRequest(
        step=step,
        run=run,
        journal=folder / f"{step}.journal.jsonl",
        answer=folder / f"{step}.made.json",
    )
    path = folder / f"{step}.request.json"
    write_text_atomically(path, request.model_dump_json(indent=2) + "\n", mode=PRIVATE)
    request.journal.unlink(missing_ok=True)
    command = Command(
        module="flows.steps.data",
        argument=path,
        processes=0,
        log=folder / f"{step}.log",
        journal=request.journal,
    )
    launcher.launch(command, on_line=attempt.on_line, cancelled=attempt.cancelled)
    return Made.model_validate_json(request.answer.read_text())


def launch_text(attempt: Attempt, *, run: RunConfig, launcher: Launcher) -> Made:
    """Makes the text towers; what they are of is fetched here, as launched processes may not."""
    return launch_step("text", attempt, run=run_with_texts(run, table_of(run)), launcher=launcher)


class Preparation:
    """The steps before anything is trained on, each a method of its name."""

    def __init__(self, request: StepRequest) -> None:
        self.run = request.run
        self.table = table_of(request.run)
        self.journal = Journal(request.journal)
        self._total = 0

    def videos(self) -> Made:
        """Films the driving world."""
        from preprocessing.world.film import make_world

        folder, video = self.run.out / "videos", self.table.video
        make_world(
            folder,
            videos=self.run.world.videos,
            seconds=self.run.world.seconds,
            fps=video.fps,
            height=video.height * video.upscale,
            width=video.width * video.upscale,
            seed=self.run.seed,
        )
        files = sorted(path for path in folder.iterdir() if path.suffix in (".mp4", ".json"))
        return Made(output=folder / "captions.csv", files=tuple(files))

    def text(self) -> Made:
        """Builds the text tower, and the one of pixel shards where that is another."""
        from videoldm_core.models.text.source import OF_PIXELS

        folder, of_pixels = self.run.out / "text_tower", self.table.pixel_text
        if (folder / OF_PIXELS).exists():  # of an earlier run: nobody must take it for this one's
            shutil.rmtree(folder / OF_PIXELS)
        if of_pixels is not None:
            self._text_tower(of_pixels).save(folder / OF_PIXELS)
        self._text_tower(self.table.text).save(folder)
        return Made(output=folder / "config.json", files=tuple(files_below(folder)))

    def _text_tower(self, text: "AnyText") -> "TextTower":
        from videoldm_core.models.text.source import ModelText

        if not isinstance(text, ModelText):
            return text.build()
        brought = brought_model(self.table.stage(text.stage))
        return text.build(Path(brought.source or ""), brought.loras)

    def admission(self) -> Made:
        """Decodes every video and says what each stage will see."""
        from flows.steps.cascade import boxed_stages
        from preprocessing.admission.admit import admit, remarks_on
        from preprocessing.sources.folder import survey_folder

        out = self.run.out
        survey = survey_folder(
            self._folder_of_videos(), self.table.vocabulary, digests=out / "digests.json"
        )
        admission = admit(
            survey.sources,
            video=self.table.video,
            windows={stage.name: (stage.frames, stage.strides) for stage in self.table.stages},
            boxed=boxed_stages(self.table),
            left_out=survey.left_out,
            out=out,
            workers=usable_cores(),
            cpu_hours=self.run.decode_cpu_hours,
            progress=lambda done, total, name: self._progress(done, total),
        )
        for remark in remarks_on(admission):
            self.journal.write(remark=remark)
        return Made(output=out / "admission.json", files=(out / "admission.html",))

    def pixels(self) -> Made:
        """Writes the pixel store."""
        from preprocessing.encoding.stores import encode_pixels
        from videoldm_core.models.text.source import pixel_tower

        return _store_made(encode_pixels(self._stores(pixel_tower(self.run.out / "text_tower"))))

    def latents(self) -> Made:
        """Writes the latent store with the frozen image encoder."""
        import torch

        from flows.steps.cascade import encoder_stage
        from preprocessing.encoding.stores import encode_latents
        from videoldm_core.jobs.published import part_paths

        parts = part_paths(self.run.stage_folder(encoder_stage(self.table)))
        store = encode_latents(
            self._stores(self.run.out / "text_tower"),
            vae_folder=parts.get("encoder", parts["vae"]),
            device="cuda" if torch.cuda.is_available() else "cpu",
            in_bfloat16=self.run.precision == "bf16",
        )
        return _store_made(store)

    def _stores(self, text_tower: Path) -> "StoreRequest":
        from preprocessing.admission.record import read_admission
        from preprocessing.encoding.stores import StoreRequest
        from videoldm_core.models.text.encoder import TextTower

        out = self.run.out
        admission = read_admission(out)
        assert admission is not None, "the flow encodes only what is admitted"
        return StoreRequest(
            clips=admission.clips,
            folder_of_videos=self._folder_of_videos(),
            out=out,
            video=self.table.video,
            text=TextTower.load(text_tower),
            digests=out / "digests.json",
            cpu_hours=self.run.decode_cpu_hours,
            progress=self._progress,
        )

    def _folder_of_videos(self) -> Path:
        return self.run.videos or self.run.out / "videos"

    def _progress(self, done: int, total: int) -> None:
        if total != self._total:
            self._total = total
            self.journal.write(total_steps=total)
        self.journal.write(step=done, metrics={})


def _store_made(location: Path | str) -> Made:
    store = Path(location)
    shards = sorted(path for path in store.glob("shard-*") if path.suffix in (".tar", ".json"))
    return Made(output=store / "index.json", files=tuple(shards))


def main() -> int:
    """The command; a user's error is one sentence on stderr and exit code 2."""
    return run_command(
        lambda: prepare(StepRequest.model_validate_json(Path(sys.argv[1]).read_text()))
    )


def prepare(request: StepRequest) -> None:
    """Makes a step and answers what it made."""
    make: Callable[[], Made] = getattr(Preparation(request), request.step)
    write_text_atomically(request.answer, make().model_dump_json(indent=2))


if __name__ == "__main__":
    sys.exit(main())

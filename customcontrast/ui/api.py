"""The page's named endpoints for programs; their docstrings are what clients read, and agents where MCP is on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gradio as gr

from customcontrast.ui.components import Files, Number, Picture
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.handlers.forms import read_camera
from customcontrast.ui.handlers.generation_run import ProgramCall
from customcontrast.ui.handlers.messages import error_text
from customcontrast.ui.sections.controls import ResultsSection
from customcontrast.ui.service import figures
from customcontrast.ui.service.request import STYLE

TEXTS = ("nouns", "prompt", "negative_prompt")
OPTIONAL = ("size", "scheduler", "per_subject", "places", "strengths", "turns", "poses", "camera")  # texts too


@contextlib.contextmanager
def api_errors() -> Iterator[None]:
    """Errors of an endpoint as one sentence for the client."""
    try:
        yield
    except Exception as error:
        raise gr.Error(error_text(error), print_exception=False) from None


class Endpoints:
    """The endpoints /segment, /generate and /maps. A client has a session, so /maps is about its last /generate."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers

    def wire(self, results: ResultsSection) -> None:
        """Make the endpoints, out of sight. results: its run and its recipe are outputs too."""
        with gr.Column(visible=False):
            call = gr.Button().click
            image, points, facts = Picture(label="image"), gr.JSON(label="points"), gr.JSON(label="facts")
            cutout = gr.Image(label="cutout", format="png", image_mode="RGBA")
            mask = gr.Image(label="mask", format="png")
            call(self.segment, [image, points], [cutout, mask, facts], api_name="segment", concurrency_id="segment")
            files, strip = gr.File(label="pictures", file_count="multiple"), gr.Image(label="strip", format="png")
            outputs = [files, strip, results.recipe, results.run]
            one = {"concurrency_limit": 1, "concurrency_id": "model"}
            call(self.generate, list(self._inputs().values()), outputs, api_name="generate", **one)
            word, map_ = gr.Textbox(label="word"), gr.Image(label="map", format="png")
            step, index = Number(0, label="step", precision=0), Number(0, label="picture", precision=0)
            call(self.maps, [results.run, word, step, index], [map_, facts], api_name="maps")

    def _inputs(self) -> dict[str, gr.blocks.Block]:
        """A component for each parameter of `generate`, in its order; limits are the service's affair."""
        inputs: dict[str, gr.blocks.Block] = {"references": Files(label="references", file_count="multiple")}
        inputs |= {name: gr.Textbox("", label=name) for name in TEXTS}
        inputs |= {"steps": Number(None, label="steps", precision=0), "guidance": Number(None, label="guidance")}
        inputs |= {"subject_scale": Number(None, label="subject_scale"), "seed": Number(0, precision=0)}
        inputs |= {"pictures": Number(1, precision=0), "location_masks": gr.Checkbox(True)}
        inputs |= {"base": gr.Textbox(self.handlers.service.config.base, label="base")}
        inputs |= {"text_tokens": gr.Checkbox(True), "apart": gr.Checkbox(True)}
        inputs |= {name: gr.Textbox("", label=name) for name in OPTIONAL}
        inputs |= {"style": Picture(label="style"), "style_strength": Number(1.0, label="style_strength")}
        inputs |= {"subject_start": Number(0.0, label="subject_start")}
        inputs |= {"subject_end": Number(1.0, label="subject_end")}
        inputs |= {"reference_resolution": Number(None, label="reference_resolution", precision=0)}
        inputs |= {"style_role": gr.Textbox(STYLE, label="style_role")}
        inputs |= {"subject_guidance_end": Number(None, label="subject_guidance_end")}
        return inputs

    def segment(self, image: str | None, points: list[list[int]] | None = None) -> tuple[Any, Any, dict[str, Any]]:
        """Cut the subject out of a picture.

        Args:
            image: the picture file.
            points: optional corrections [[x, y, label], …] in pixels of the returned mask; label 1 adds, 0 removes.

        Returns:
            The subject with a transparent ground, its mask in black and white, and {box, score, method}.
        """
        with api_errors():
            found = self.handlers.service.cutouts.segmented(image, points)
            facts = {"box": found.box, "score": found.score, "method": found.method}
            return found.cutout, found.mask_image, facts

    def generate(
        self,
        references: list[str] | None = None,
        nouns: str = "",
        prompt: str = "",
        negative_prompt: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        subject_scale: float | None = None,
        seed: int = 0,
        pictures: int = 1,
        location_masks: bool = True,
        base: str = "",
        text_tokens: bool = True,
        apart: bool = True,
        size: str = "",
        scheduler: str = "",
        per_subject: str = "",
        places: str = "",
        strengths: str = "",
        turns: str = "",
        poses: str = "",
        camera: str = "",
        style: str | None = None,
        style_strength: float = 1.0,
        subject_start: float = 0.0,
        subject_end: float = 1.0,
        reference_resolution: int | None = None,
        style_role: str = STYLE,
        subject_guidance_end: float | None = None,
    ) -> tuple[Any, ...]:
        """Make new pictures of the subjects.

        Args:
            references: picture files of the subjects, in order, or one file; none for text alone.
            nouns: the subjects' words, separated by commas, in the same order.
            prompt: what to draw; it names each subject with its word.
            negative_prompt: what to avoid.
            steps: denoising steps, 1 to 100; none for the model's own.
            guidance: how strictly the text is followed, 0 to 30; none for the model's own.
            subject_scale: how much of the subject's picture flows in (λ), 0 to 5; none for the adapter's own, 1, or
                0.6 for a published IP-Adapter.
            seed: the same seed gives the same picture.
            pictures: how many, 1 to 4.
            location_masks: keep each subject to the place found for it, step by step.
            base: the model; empty for the one that this server starts with.
            text_tokens: off, the subject comes through its picture alone, as with IP-Adapter.
            apart: draw each of several subjects in a pass of its own, so that they do not mix.
            size: "WIDTHxHEIGHT" in pixels; empty for the size the model was trained at.
            scheduler: ddim, ddpm, dpm, dpm_sde, euler, euler_ancestral, heun, pndm or unipc; empty for the model's own.
            per_subject: how many of the references belong to each subject, such as "2, 1"; empty for one each.
            places: where each subject stands, separated by semicolons: left, middle, right, anywhere (no mask), or a
                box as "left, top, right, bottom" in percent, such as "left; 50, 20, 90, 100"; empty for automatic.
            strengths: how much of each subject's picture flows in, 0 to 3, such as "1; 0.5"; empty for 1 each.
            turns: how each subject is turned: any, front, front left, left, back left, back, back right, right, front
                right, or degrees from -180 to 180, such as "left; any"; for models that are told (toyland2).
            poses: standing, sitting, walking, waving or any for each subject, such as "sitting; any"; likewise.
            camera: its height in degrees, 3 to 40; empty for any; likewise.
            style: a picture file whose style the result is to have, for SD-1.5 and SDXL with a published IP-Adapter;
                the references are subjects, this one is not.
            style_strength: how much of that style, 0 to 3.
            subject_start: share of the steps, 0 to 1, before which λ is 0.
            subject_end: share of the steps after which λ is 0.
            reference_resolution: side in px at which the references are seen, 16 to twice that of the image encoder;
                none for its own. Less leaves details out; more shows it more than it was trained with.
            style_role: what is taken from the picture `style`: style, or layout (its composition).
            subject_guidance_end: share of the steps, from the first, in which guidance is on the subjects instead of
                the words, 0 to 1; none for the model's own.

        Returns:
            PNG files that carry their recipe, the strip of location masks, and the recipe.
        """
        with api_errors():
            settings = {
                "prompt": prompt, "negative_prompt": negative_prompt, "steps": steps, "guidance": guidance,
                "subject_scale": subject_scale, "seed": seed, "pictures": pictures, "location_masks": location_masks,
                "base": base or None, "size": size, "scheduler": scheduler, "text_tokens": text_tokens, "apart": apart,
                "elevation": read_camera(camera), "subject_start": subject_start, "subject_end": subject_end,
                "reference_resolution": reference_resolution, "subject_guidance_end": subject_guidance_end,
            }  # fmt: skip
            subjects = (references or (), nouns, per_subject, places, strengths, turns, poses)
            call = ProgramCall(*subjects, settings, style, style_strength, style_role)
            run = self.handlers.generation.run(call)
            files = self.handlers.generation.save(run.request, run.result)
            return files, figures.strip(run.result, 0, run.references), run.settings, run

    def maps(  # noqa: D417 - `run` is the session's, and no client sends it
        self, run: Any, word: str, step: int = 0, picture: int = 0
    ) -> tuple[Any, dict[str, Any]]:
        """Where a word, or a subject's picture, acted in the last picture of this session.

        Args:
            word: one of the words that the answer lists; the second "bear" is "bear #2"; S*, S1*, … for a subject's
                own tokens; visual:1, visual:2, … for its picture.
            step: a denoising step from 1, or 0 for the mean over all of them.
            picture: which picture of the last request, from 0.

        Returns:
            The map in colour over the picture, and {map: rows of values, words: all words there are}.
        """
        with api_errors():
            return self.handlers.viewers.named_map(run, word, step, picture)

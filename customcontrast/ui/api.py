"""The page's named endpoints for programs; their docstrings are what clients read, and agents where MCP is on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gradio as gr

from customcontrast.ui.handlers.generation import CONTROLS, Desk, said
from customcontrast.ui.service import figures
from customcontrast.ui.theme import Files, Picture


@contextlib.contextmanager
def api_errors() -> Iterator[None]:
    """Errors of an endpoint as one sentence for the client."""
    try:
        yield
    except Exception as error:
        raise gr.Error(said(error), print_exception=False) from None


class Endpoints:
    """/segment, /generate, /maps. A client keeps its session, so /maps speaks of that client's last /generate."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def wire(self, c: dict[str, Any]) -> None:
        """Make the endpoints, out of sight. c: the page's components; "shown" and "recipe" are used."""
        with gr.Column(visible=False):
            call = gr.Button().click
            image, points, facts = Picture(label="image"), gr.JSON(label="points"), gr.JSON(label="facts")
            cutout = gr.Image(label="cutout", format="png", image_mode="RGBA")
            mask = gr.Image(label="mask", format="png")
            one = {"concurrency_limit": 1, "concurrency_id": "model"}
            call(self.segment, [image, points], [cutout, mask, facts], api_name="segment", concurrency_id="segment")
            references = Files(label="references", file_count="multiple")
            nouns, word = gr.Textbox("", label="nouns"), gr.Textbox(label="word")
            files, strip = gr.File(label="pictures", file_count="multiple"), gr.Image(label="strip", format="png")
            outputs = [files, strip, c["recipe"], c["shown"]]
            defaults = (20, 4.0, 1.0, 0, 1)  # limits are the studio's affair, so that its sentences are heard
            texts = [gr.Textbox(""), gr.Textbox("")]
            numbers = [gr.Number(v, precision=0 if isinstance(v, int) else None) for v in defaults]
            controls = [*texts, *numbers, gr.Checkbox(True), gr.Textbox(self.desk.studio.config.base)]
            controls += [gr.Textbox(""), gr.Textbox(""), gr.Checkbox(True), gr.Textbox(""), gr.Textbox("")]
            call(self.generate, [references, nouns, *controls], outputs, api_name="generate", **one)
            index, map_ = gr.Number(0, label="picture", precision=0), gr.Image(label="map", format="png")
            step = gr.Number(0, label="step", precision=0)
            call(self.maps, [c["shown"], word, step, index], [map_, facts], api_name="maps")

    def segment(self, image: str | None, points: list[list[int]] | None = None) -> tuple[Any, Any, dict[str, Any]]:
        """Cut the subject out of a picture.

        Args:
            image: the picture file.
            points: optional corrections [[x, y, label], …] in pixels of the returned mask; label 1 adds, 0 removes.

        Returns:
            The subject with a transparent ground, its mask in black and white, and {box, score, method}.
        """
        with api_errors():
            found = self.desk.found(image, points)
            facts = {"box": found.box, "score": found.score, "method": found.method}
            return found.cutout, figures.mask_image(found), facts

    def generate(
        self,
        references: list[str] | None = None,
        nouns: str = "",
        prompt: str = "",
        negative_prompt: str = "",
        steps: int = 20,
        guidance: float = 4.0,
        subject_scale: float = 1.0,
        seed: int = 0,
        pictures: int = 1,
        location_masks: bool = True,
        base: str = "toyland",
        size: str = "",
        scheduler: str = "",
        text_tokens: bool = True,
        per_subject: str = "",
        places: str = "",
        apart: bool = True,
    ) -> tuple[Any, ...]:
        """Make new pictures of the subjects.

        Args:
            references: picture files of the subjects, in order; none for text alone.
            nouns: the subjects' words, separated by commas, in the same order.
            prompt: what to draw; it names each subject with its word.
            negative_prompt: what to avoid.
            steps: denoising steps, 1 to 100.
            guidance: how strictly the text is followed, 0 to 30.
            subject_scale: how much of the subject's picture flows in (λ), 0 to 5.
            seed: the same seed gives the same picture.
            pictures: how many, 1 to 4.
            location_masks: keep each subject to the place found for it, step by step.
            base: the model.
            size: "WIDTHxHEIGHT" in pixels; empty for the size the model was trained at.
            scheduler: ddim, ddpm, dpm, dpm_sde, euler, euler_ancestral, heun, pndm or unipc; empty for the model's own.
            text_tokens: off, the subject comes through its picture alone, as with IP-Adapter.
            per_subject: how many of the references belong to each subject, such as "2, 1"; empty for one each.
            places: where each subject stands, separated by semicolons: left, middle, right, anywhere (no mask), or a
                box as "left, top, right, bottom" in percent, such as "left; 50, 20, 90, 100"; empty for automatic.
            apart: draw each of several subjects in a pass of its own, so that they do not mix.

        Returns:
            PNG files that carry their recipe, the strip of location masks, and the recipe.
        """
        with api_errors():
            values = (prompt, negative_prompt, steps, guidance, subject_scale, seed, pictures, location_masks, base)
            values = (*values, size, scheduler, text_tokens, apart)
            shown = self.desk.run(
                references or [], nouns, per_subject, places, **dict(zip(CONTROLS, values, strict=True))
            )
            files = self.desk.save(shown.request, shown.result)
            return files, figures.strip(shown.result, 0, shown.references), shown.settings, shown

    def maps(self, shown: Any, word: str, step: int = 0, picture: int = 0) -> tuple[Any, dict[str, Any]]:
        """Where a word, or a subject's picture, acted in the last picture of this session.

        Args:
            word: a word of the prompt; S*, S1*, … for a subject's own tokens; visual:1, visual:2, … for its picture.
            step: a denoising step from 1, or 0 for the mean over all of them.
            picture: which picture of the last request, from 0.

        Returns:
            The map in colour over the picture, and {map: rows of values, words: all words there are}.
        """
        with api_errors():
            return self.desk.named_map(shown, word, step, picture)

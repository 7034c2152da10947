"""Small building blocks of the page: inputs whose files and numbers we judge, headings, explanations, pictures."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.data_classes import FileData, GradioRootModel


class Picture(gr.Image):
    """gr.Image that hands over the visitor's file unread, so that every bad file is answered by our sentence."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        """The path of the uploaded file; None without one."""
        return payload.path if payload else None


class OneOrMoreFiles(GradioRootModel):
    """What a client sends for files: a list, or one file alone."""

    root: list[FileData] | FileData


class Files(gr.File):
    """gr.File that hands over paths, of a list or of one file; gradio's own leaves an empty file behind for each."""

    is_template = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.data_model = OneOrMoreFiles

    def preprocess(self, payload: Any) -> list[str] | None:
        """The paths of the uploaded files, one file as a list too; None without one."""
        if not payload:
            return None
        files = payload.root if isinstance(payload, OneOrMoreFiles) else payload
        return [file.path for file in (files if isinstance(files, list) else [files])]


class Number(gr.Number):
    """gr.Number that hands over what a program sent unread: gradio's own rounds 2.5, and says nothing of "many"."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """What was sent."""
        return payload


class UploadButton(gr.UploadButton):
    """gr.UploadButton for one file, with the same cure; what the file holds is judged by whoever reads it."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        """The path of the uploaded file; None without one."""
        return payload.path if payload else None


def heading(number: int, text: str) -> gr.HTML:
    """A numbered title of a section."""
    return gr.HTML(f"<h2><b>{number}</b>{text}</h2>", elem_classes="cc-step")


def info(title: str, text: str, **options: Any) -> gr.HTML:
    """A title with an (i) that opens an explanation."""
    return gr.HTML(f'<details class="cc-info"><summary>{title}</summary><p>{text}</p></details>', **options)


def hint(text: str) -> gr.HTML:
    """A line of advice."""
    return gr.HTML(f'<p class="cc-hint">{text}</p>')


def view(label: str, name: str, figure: bool = False, **options: Any) -> gr.Image:
    """A picture to look at and to download. figure: it is wide and full of labels, and may be scrolled on a phone."""
    options = {"interactive": False, "format": "png", "buttons": ["download", "fullscreen"]} | options
    classes = ["cc-view", "cc-figure"] if figure else "cc-view"
    return gr.Image(label=label, show_label=False, elem_id=name, elem_classes=classes, alt_text=label, **options)

"""The seed, the two guidances, the camera, and the closed panel of everything else."""

from __future__ import annotations

import gradio as gr

from customcontrast.config import LIMITS
from customcontrast.specs import BASES, SCHEDULERS
from customcontrast.ui.handlers import Handlers
from customcontrast.ui.handlers.messages import note
from customcontrast.ui.sections.controls import Sections, SettingsSection
from customcontrast.ui.wiring import QUIET, Wire

HEIGHTS = ("5", "15", "25", "35")  # degrees of the camera that are offered


def slider(limit: str, value: float, step: float, **options: object) -> gr.Slider:
    """A slider that ends where the checks end."""
    bounds = LIMITS[limit]
    return gr.Slider(bounds.public_low, bounds.public_high, value, step=step, **options)


# fmt: off
def build(handlers: Handlers) -> SettingsSection:
    """Lay the section out."""
    models = handlers.service.models
    spec = BASES[models.config.base]
    with gr.Row(elem_classes="cc-line"):
        seed = gr.Number(label="Seed", value=0, precision=0, min_width=110, scale=2,
                         elem_id="seed", info="The same seed gives the same picture.")
        dice = gr.Button("New seed", size="sm", min_width=90, elem_id="dice")
        reuse = gr.Button("Reuse seed", size="sm", min_width=90, elem_id="reuse")
    with gr.Row():
        subject_scale = slider("subject_scale", models.default_scale(), 0.05, label="Image guidance λ",
                               elem_id="image-guidance", info="How much of your subject's picture flows in.",
                               min_width=300)
        guidance = slider("guidance_scale", spec.guidance, 0.1, label="Text guidance", elem_id="text-guidance",
                          info="How strictly the words are followed.", min_width=300)
    with gr.Row(visible=models.takes_layout(), elem_id="view") as view:
        camera = gr.Dropdown([("any", ""), *((f"{height}°", height) for height in HEIGHTS)], value="",
                             label="Camera height", elem_id="camera", allow_custom_value=True,
                             info="Degrees above the ground, 3 to 40; others may be typed.")
    pictures = slider("num_images", 1, 1, label="Number of pictures", info="Each with a seed of its own.",
                      elem_id="pictures")
    with gr.Accordion("More settings", open=False):
        negative_prompt = gr.Textbox(label="Not in the picture", value="", placeholder="what to avoid")
        steps = slider("num_inference_steps", spec.steps, 1, label="Steps", elem_id="steps",
                       info="More take longer and are finer.")
        with gr.Row():
            subject_start = slider("subject_start", 0, 0.05, label="Image guidance from", elem_id="guidance-from",
                                   info="Share of the steps: later, the words lay the picture out first.",
                                   min_width=240)
            subject_end = slider("subject_end", 1, 0.05, label="Image guidance until", elem_id="guidance-until",
                                 info="Share of the steps: earlier, the words finish the picture.", min_width=240)
        subject_guidance_end = slider("subject_guidance_end", spec.subject_guidance_end, 0.05, elem_id="subject-first",
                                      label="Hold to the subject until",
                                      info="Share of the steps: up to it, guidance is towards your subject rather than "
                                           "the words. More is more like it, and obeys a little less.")
        size = gr.Dropdown(handlers.prompt.sizes(models.config.base), value="", label="Size", allow_custom_value=True,
                           info="Width × height in pixels; others may be typed.", elem_id="size")
        schedulers = [("the model's own", ""), *((one.title, key) for key, one in SCHEDULERS.items())]
        scheduler = gr.Dropdown(schedulers, value="", label="Scheduler", elem_id="scheduler",
                                info="The rule that turns noise into a picture.")
        resolution = gr.Dropdown(handlers.prompt.resolutions(models.config.base), value="",
                                 label="Reference resolution", allow_custom_value=True, elem_id="resolution",
                                 info="At how many pixels your pictures are seen. Fewer: their details leave room for "
                                      "your words.")
        location_masks = gr.Checkbox(True, label="Location masks",
                                     info="Keep each subject to the place found for it, step by step.")
        text_tokens = gr.Checkbox(True, label="Subject in the text",
                                  info="Off: the subject's picture alone speaks, as with IP-Adapter.")
        apart = gr.Checkbox(True, label="Several subjects: draw each by itself", elem_id="apart",
                            info="So that they do not mix. Takes the time of one picture for each.")
        titles = [(one.title if models.offers(name) else f"{one.title}: not here yet", name)
                  for name, one in BASES.items()]
        base = gr.Dropdown(titles, value=models.config.base, label="Model", elem_id="base",
                           info="Those of this machine can be used; the others say how to get them.")
        base_note = gr.HTML(note(""), visible=False, elem_id="base-note")
    memory = gr.HTML(visible=False, elem_id="memory")
    return SettingsSection(
        seed=seed, dice=dice, reuse=reuse, guidance=guidance, subject_scale=subject_scale, pictures=pictures, view=view,
        camera=camera, negative_prompt=negative_prompt, steps=steps, subject_start=subject_start,
        subject_end=subject_end, subject_guidance_end=subject_guidance_end, size=size, scheduler=scheduler,
        resolution=resolution, location_masks=location_masks, text_tokens=text_tokens, apart=apart, base=base,
        base_note=base_note, memory=memory,
    )


def wire(wire: Wire, handlers: Handlers, sections: Sections) -> None:
    """Seeds, and another base."""
    section, panel = sections.settings, handlers.prompt
    wire.on(section.dice.click, panel.new_seed, {}, {"seed": section.seed}, queue=False, **QUIET)
    wire.on(section.reuse.click, panel.reuse_seed, {"run": sections.results.run}, {"seed": section.seed}, **QUIET)
    names = ("base", "steps", "guidance", "subject_scale", "subject_guidance_end", "scheduler", "size", "resolution",
             "base_note")
    changed = {name: getattr(section, name) for name in names}
    wire.on(section.base.input, panel.choose_base, {"base": section.base}, {**changed, **sections.by_base}, **QUIET)

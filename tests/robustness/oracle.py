"""What a right value is, said apart from the code that checks it: the tests of bad input tell their outcomes by it."""

from __future__ import annotations

from typing import Any

NUMBERS_OF_A_RUN = {  # setting: least, most, whole numbers alone, whether it may be left out; what it is called
    "steps": (1, 100, True, True, "steps"),
    "guidance": (0, 30, False, True, "guidance"),
    "subject_scale": (0, 5, False, True, "subject scale"),
    "seed": (0, 2**31 - 1, True, False, "seed"),
    "pictures": (1, 4, True, False, "pictures"),
}
SWITCHES_OF_A_RUN = {"location_masks": "location masks", "text_tokens": "own tokens", "apart": "passes of their own"}
LONGEST_PROMPT = 20_000  # characters


def is_number(value: object, low: float, high: float, whole: bool = False) -> bool:
    """Whether a value is a number within these bounds; True and False are none."""
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool) and low <= value <= high


def is_public(value: Any, low: float, high: float, whole: bool = False) -> bool:
    """Whether a control, a program or a recipe may hold this for a number: a number within its bounds, or its text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return is_number(value, low, high, whole)


def is_right(name: str, value: Any) -> bool:
    """Whether a setting of a run may hold this value, whoever gives it."""
    if name in NUMBERS_OF_A_RUN:
        low, high, whole, may_lack, _ = NUMBERS_OF_A_RUN[name]
        return is_public(value, low, high, whole) or (value is None and may_lack)
    if name in SWITCHES_OF_A_RUN:
        return isinstance(value, bool)
    text = isinstance(value, str)
    return {
        "prompt": text and bool(value.strip()) and len(value) <= LONGEST_PROMPT,
        "negative_prompt": value is None or (text and len(value) <= LONGEST_PROMPT),
        "base": value is None or text,  # which models there are is another question
        "size": value in (None, ""),  # none of the tests gives a right one by chance
        "scheduler": value in (None, ""),
    }[name]


def wrong_in(values: dict[str, Any]) -> str | None:
    """A pattern of the names of all settings of a run that are wrong; None where all are right."""
    called = {name: row[-1] for name, row in NUMBERS_OF_A_RUN.items()} | SWITCHES_OF_A_RUN
    called |= {"negative_prompt": "negative prompt", "base": "model"}
    return "|".join(called.get(name, name) for name, value in values.items() if not is_right(name, value)) or None

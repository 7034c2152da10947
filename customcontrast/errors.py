"""Errors that a user can mend. Each message is one sentence: what was given, and what to do instead.

Nothing here imports torch. The page, the API and the command line show the message of a `UserError` to people, and hide
every other error.
"""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can mend, in one sentence.

    message: names what was given and what to do instead. argument: the name of what was wrong, "" where it has none.
    """

    def __init__(self, message: str = "", argument: str = "") -> None:
        super().__init__(message)
        self.argument = argument

    @classmethod
    def of(cls, argument: str, given: object, remedy: str) -> UserError:
        """The error of one argument: `of("steps", 0, "must be 1 to 100")` reads “steps=0 must be 1 to 100.”."""
        return cls(f"{argument}={given!r} {remedy}".rstrip(".") + ".", argument)


class ConfigError(UserError):
    """A setting cannot be used."""


class BaseModelError(UserError):
    """A base model cannot be loaded."""


class HubError(UserError):
    """A file cannot be downloaded from the hub; the message says what to put where."""


class CheckpointError(UserError):
    """An adapter file cannot be read, or does not fit the base."""


class PictureError(UserError):
    """A picture cannot be read."""


class SegmentationError(UserError):
    """No subject can be found in a picture, or a correction cannot be used."""


class AtlasError(UserError):
    """A file of known subjects' features cannot be used."""


class RecipeError(UserError):
    """A file holds no recipe that can be read."""


class RequestError(UserError):
    """A request for pictures cannot be served."""


class ViewError(UserError):
    """A map, picture or step was requested that the run does not have."""


class ResumeError(UserError):
    """A training run cannot go on from a checkpoint."""


class DataLayoutError(UserError):
    """A folder of photographs does not have the layout of its data set."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory gave out: Python's own, a GPU's, or torch's allocator on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)

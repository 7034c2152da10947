"""The verdict on a bad input: it may end in a result or in one clear sentence, in time, and leave no file behind."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from customcontrast.errors import (
    BaseModelError,
    CheckpointError,
    ConfigError,
    DataLayoutError,
    PictureError,
    RecipeError,
    RequestError,
    ResumeError,
    SegmentationError,
    ViewError,
)
from customcontrast.ui.handlers.messages import OUR_FAULT

OURS = (
    BaseModelError, CheckpointError, ConfigError, DataLayoutError, PictureError, RecipeError, ResumeError,
    SegmentationError, RequestError, ViewError,
)  # fmt: skip
LIMIT = 30  # s that one case may take, on a busy machine
LONGEST = 420  # characters of a sentence
RAW = re.compile(
    r"Traceback|object has no attribute|invalid literal|NoneType|not supported between|unexpected keyword"
    r"|positional argument|must be real number|0x[0-9a-f]{6}|size mismatch|index out of range|could not convert"
    r"|unpack|unhashable|subscriptable|not iterable|codec can't|cannot reshape|broadcast|Expecting value"
    r"|ambiguous|operand|out of bounds|divide|ufunc|argument must be|expected str|recursion|[a-z]Error\b"
)  # words of Python, numpy and torch that tell a visitor nothing


@dataclass
class Judge:
    """Runs the cases of one entry and counts them. files: folders in which a refused case may leave nothing."""

    entry: str
    files: list[Path] = field(default_factory=list)
    results: int = 0
    sentences: int = 0
    failures: list[str] = field(default_factory=list)  # the test's teardown fails with all of them

    def __call__(self, call: Callable[..., Any], *args: Any, says: str = "", **options: Any) -> str:
        """Run one case. Returns "" after a result, else the sentence. says: a pattern the sentence must show."""
        name = f"{getattr(call, '__qualname__', call)}{_shown(args)}{_shown(options)}"
        return self._noted(name, lambda: self._run(call, args, options, says))

    def command(self, main: Callable[[list[str]], int], arguments: list[str], says: str = "") -> str:
        """A command line: exit status 0, or 1 or 2 with one sentence as the last line of its error output."""
        return self._noted(f"{main.__module__} {arguments}", lambda: self._command(main, arguments, says))

    def _noted(self, name: str, case: Callable[[], str]) -> str:
        try:
            return case()
        except AssertionError as error:
            self.failures.append(f"{name}: {error}")
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.failures.append(f"{name}: {type(error).__name__} ({place.filename}:{place.lineno}): {error}")
        return ""

    def _run(self, call: Callable[..., Any], args: tuple, options: dict[str, Any], says: str) -> str:
        before = self._listing()
        try:
            with deadline(), quiet():
                call(*args, **options)
        except SystemExit as end:
            raise AssertionError(f"ended the program with status {end.code}") from end
        except OURS as error:
            said = str(error)
        except ValueError as error:
            assert type(error) is ValueError, f"{type(error).__name__} is not documented: {error}"
            said = str(error)
        else:
            self.results += 1
            assert not says, f"taken, though it should be refused with {says!r}"
            return ""
        return self.sentence(said, says, before)

    def _command(self, main: Callable[[list[str]], int], arguments: list[str], says: str) -> str:
        before = self._listing()
        with deadline(), quiet() as printed:
            try:
                status = main(arguments)
            except SystemExit as end:
                status = end.code
        assert "Traceback" not in printed.getvalue(), printed.getvalue()[-2000:]
        if not status:
            self.results += 1
            assert not says, f"taken, though it should be refused with {says!r}"
            return ""
        assert status in (1, 2), f"exit status {status!r}"
        return self.sentence(re.sub(r"^[\w. -]*?error: ", "", _last_line(printed.getvalue())), says, before)

    def sentence(self, said: str, says: str = "", before: set[Path] | None = None) -> str:
        """Count a sentence after holding it to what a sentence is."""
        self.sentences += 1
        assert said.strip() and "\n" not in said.strip(), f"not one line: {said!r}"
        quoted = re.sub(
            r"<[^>]*>|'[^']*'|“[^”]*”|\([^)]*\)|\{.*\}|\[.*\]", "", said
        )  # what was given is quoted as it came
        assert 18 <= len(said) and len(quoted) <= LONGEST, f"{len(quoted)} characters: {said!r}"
        assert not RAW.search(quoted) and OUR_FAULT not in said, f"raw: {said!r}"
        assert re.search(says, said), f"{said!r} does not say {says!r}"
        if before is not None:
            left = sorted(str(path) for path in self._listing() - before)
            assert not left, f"left behind: {left}"
        return said

    @property
    def count(self) -> int:
        return self.results + self.sentences

    def _listing(self) -> set[Path]:
        folders = [Path(tempfile.gettempdir()), *self.files]
        return {path for folder in folders if folder.is_dir() for path in folder.rglob("*")}


@contextlib.contextmanager
def deadline(seconds: int = LIMIT) -> Iterator[None]:
    """Fails what hangs. Main thread only."""

    def late(*_: object) -> None:
        raise AssertionError(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """What is printed on both outputs, held back; so are log lines of expected failures."""
    printed = io.StringIO()
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            yield printed
    finally:
        logging.disable(level)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _shown(values: object) -> str:
    return f" {ascii(values)[:110]}" if values else ""

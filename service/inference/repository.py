"""The model on disk: a file, or a folder of versions FOLDER/3/model.onnx, of which one serves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.errors import ModelFileError
from service.inference.model import Model

if TYPE_CHECKING:
    from pathlib import Path

    from service.inference.providers import SessionFactory

FILE = "model.onnx"

_VERSION = re.compile("[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Candidate:
    """A file that may serve, and the version that its metadata must have; None is any."""

    path: Path
    version: str

    def fingerprint(self) -> tuple[str | int, ...]:
        """Changes whenever another file lies there, the file itself changes, or who may read it."""
        try:
            stat = self.path.stat()
        except OSError:
            return (str(self.path),)
        return (
            str(self.path),
            stat.st_ino,
            stat.st_size,
            stat.st_mtime_ns,
            stat.st_mode,
            stat.st_uid,
            stat.st_gid,
        )


class ModelRepository:
    """The file or folder at `path`; with `version` that version alone, with `sha256` a file of that digest alone.

    `sessions` makes the models' sessions; without it the CPU runs them.
    """

    def __init__(
        self, path: Path, *, version: str = "", sha256: str = "", sessions: SessionFactory | None = None
    ) -> None:
        self.path = path
        self._sessions = sessions
        self._pinned = version
        self._sha256 = sha256

    def candidates(self) -> list[Candidate]:
        """The files that may serve, the newest version first. Raises ModelFileError for a folder of none."""
        if not self.path.is_dir():
            return [Candidate(self.path, self._pinned)]
        if self._pinned:
            return [Candidate(self.path / self._pinned / FILE, self._pinned)]
        versions = [child.name for child in self._folders() if _VERSION.fullmatch(child.name) and _has_file(child)]
        if not versions:
            raise ModelFileError(f"{self.path}: has no version; expected {self.path / '1' / FILE}")
        return [Candidate(self.path / version / FILE, version) for version in sorted(versions, key=int, reverse=True)]

    def skipped_folders(self) -> dict[str, str]:
        """Folders that resemble versions but are none, each with the reason."""
        if self._pinned or not self.path.is_dir():
            return {}
        skipped = {}
        for child in self._folders():
            if _VERSION.fullmatch(child.name):
                if not _has_file(child):
                    skipped[child.name] = f"holds no {FILE}"
            elif _has_file(child):
                skipped[child.name] = "the name is no version; expected a number from 1, without leading zeros"
        return skipped

    def _folders(self) -> list[Path]:
        """Return the folder's entries without hidden ones, which Kubernetes volumes use for their files."""
        try:
            return [child for child in self.path.iterdir() if not child.name.startswith(".")]
        except OSError as e:
            raise ModelFileError(f"{self.path}: cannot be read: {e.strerror}") from None

    def load(self, candidate: Candidate) -> Model:
        """The model in a file, verified and warmed up.

        Raises ModelFileError if it is not the expected model, ProviderError if the provider cannot run it.
        """
        model = Model(candidate.path, sha256=self._sha256, sessions=self._sessions)
        if candidate.version and model.info.version != candidate.version:
            raise ModelFileError(
                f"{candidate.path}: its metadata has version {model.info.version}; expected {candidate.version}: "
                f"export it with --version {candidate.version}"
            )
        return model


def _has_file(folder: Path) -> bool:
    return (folder / FILE).exists()

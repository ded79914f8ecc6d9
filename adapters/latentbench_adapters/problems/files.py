"""`adapter: files`: problems from JSON Lines files of the project."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from latentbench.errors import RefusedFile
from latentbench.section import Json
from latentbench_adapters.files import FilesDataset, parsed_lines
from latentbench_adapters.problems.template import TemplatedProblems
from latentbench_adapters.protocols import Roots


class FileProblems(TemplatedProblems):
    """Problems in the order of the sorted file names and of their lines."""

    adapter: Literal["files"] = "files"
    path: Annotated[str, Field(min_length=1, max_length=500)]
    """File or glob such as `data/gsm8k/train.jsonl`, relative to the project."""

    def identity(self, roots: Roots) -> Json:
        files = self._files().identity(roots)["files"]
        return {"files": files, **self.model_dump(mode="json", exclude={"adapter", "path"})}

    def rows(self, roots: Roots) -> Iterator[tuple[str, Json]]:
        for path in self._files().files(roots):
            if path.suffix != ".jsonl":
                raise RefusedFile(f"{path.name}: problems are read from .jsonl files")
            for number, row in parsed_lines(path):
                yield f"{path.name}:{number}", row

    def _files(self) -> FilesDataset:
        return FilesDataset(path=self.path)

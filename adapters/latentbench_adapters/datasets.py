"""Text datasets: of files of the project, of files that a Python package brought along, and of the hub."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt

from latentbench.core.border import foreign
from latentbench.core.errors import InvalidInput, NotAvailable, Unpinnable
from latentbench.core.hub import check_dataset, is_commit, resolved_commit
from latentbench.core.known_files import known_digest
from latentbench.core.packages import PackageName, PackagePattern, PackageVersion, Sha256, check_sha256, package_files
from latentbench.core.paths import Roots
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.spec_model import Json
from latentbench_adapters.row_filters import RowFilter
from latentbench_adapters.text_files import SplitOn, TextFile, text_of

ONCE_READ = (".txt", ".jsonl", ".parquet")
"""What files could be before identities named their kinds."""


Pattern = Annotated[str, Field(min_length=1, max_length=500)]
NO_LABEL = "the texts have no labels: name the column that holds them as `label`"


def label_text(value: Json) -> str:
    """A label as text: as it stands, or what JSON makes of a number."""
    return value if isinstance(value, str) else json.dumps(value)


class TextFiles(DatasetAdapter):
    """Documents in the order of the sorted file names and, within a file, of its lines or rows."""

    field: Annotated[str, Field(min_length=1)] = "text"
    """Column or key that holds the text (not in .txt files)."""
    split_on: SplitOn = "file"
    """What a document is in a .txt file."""
    filter: tuple[RowFilter, ...] = ()
    """Which rows are read: those that every one of these keeps."""
    per_file: PositiveInt | None = None
    """Documents read of each file at most, after `filter`."""
    label: Annotated[str, Field(min_length=1)] | None = None
    """Column that holds the label, for probing."""

    _newer: ClassVar[tuple[str, ...]] = (*DatasetAdapter._newer, "filter", "per_file", "label")

    @abstractmethod
    def paths(self, roots: Roots) -> list[Path]:
        """The files, sorted. Raises NotAvailable when there are none."""

    def identity(self, roots: Roots) -> Json:
        files = self.files(roots)
        made = {"files": [known_digest(file.path) for file in files], "field": self.field, "split_on": self.split_on}
        # The same bytes are other documents as .txt and as .jsonl.
        plain = [n for n, file in enumerate(files) if file.kind == ".txt" and not file.compression]
        kinds = {str(n): file.kind for n, file in enumerate(files) if file.compression or file.kind not in ONCE_READ}
        return (
            made | {name: value for name, value in {"plain": plain, "kinds": kinds}.items() if value} | self.chosen_rows
        )

    @property
    def chosen_rows(self) -> dict[str, Json]:
        """Which rows are read, for identities; what is not said is not in it."""
        said = {"filter": [one.plain() for one in self.filter], "per_file": self.per_file, "label": self.label}
        return {name: value for name, value in said.items() if value}

    def texts(self, roots: Roots) -> Iterator[str]:
        for file in self.files(roots):
            yield from (text for text, _ in self._rows(file))

    def labelled(self, roots: Roots) -> Mapping[str, Iterable[tuple[str, str]]]:
        """One set for each file, by the file's name without endings."""
        if self.label is None:
            raise InvalidInput(NO_LABEL)
        files = self.files(roots)
        found = {file.stem: self._labels(file) for file in files}
        if len(found) < len(files):
            raise InvalidInput("two files of labelled sets have the same name, by which the sets are called")
        return found

    def files(self, roots: Roots) -> list[TextFile]:
        """The files meant. Raises NotAvailable when there are none, RefusedFile for another kind."""
        return list(map(TextFile.at, self.paths(roots)))

    def _rows(self, file: TextFile) -> Iterator[tuple[str, Mapping[str, Json]]]:
        """Text and row of what is read of a file."""
        named = (self.field, self.label, *(one.field for one in self.filter))
        rows = file.rows(dict.fromkeys(name for name in named if name is not None), self.split_on)
        return islice(self._kept(file, rows), self.per_file)

    def _kept(
        self, file: TextFile, rows: Iterator[tuple[int, Mapping[str, Json]]]
    ) -> Iterator[tuple[str, Mapping[str, Json]]]:
        for number, row in rows:
            where = file.place(number)
            text = text_of(row, self.field, where)
            if all(one.keeps(row, text, where) for one in self.filter):
                yield text, row

    def _labels(self, file: TextFile) -> Iterator[tuple[str, str]]:
        for text, row in self._rows(file):
            if (value := row.get(self.label or "")) is None:
                raise InvalidInput(f"{file.name}: a row has no label under {self.label!r}")
            yield text, label_text(value)


class FilesDataset(TextFiles):
    """Texts of files in the project."""

    adapter: Literal["files"] = "files"
    path: Pattern | Annotated[tuple[Pattern, ...], Field(min_length=1)]
    """File or glob such as `data/chem/*.jsonl`, relative to the project, or a list of them; .txt, .csv, .tsv or .jsonl, plain or
    compressed (.gz, .zst), or .parquet."""

    def paths(self, roots: Roots) -> list[Path]:
        """Raises OutsideProject for what leads out of the project."""
        patterns = (self.path,) if isinstance(self.path, str) else self.path
        return list(dict.fromkeys(path for pattern in patterns for path in _matching(pattern, roots)))


class PackageDataset(TextFiles):
    """Texts of files that an installed Python package brought along; its code is never imported."""

    adapter: Literal["package"] = "package"
    package: PackageName
    """How pip calls it, e.g. `sae-probes`."""
    version: PackageVersion | None = None
    """The version that must be installed; default whichever is."""
    path: PackagePattern | Annotated[tuple[PackagePattern, ...], Field(min_length=1)]
    """File or glob in the package such as `sae_probes/data/cleaned_data/98_*.csv.zst`, or a list of them; the kinds
    of `adapter: files`, by its ending."""

    sha256: Sha256 | None = None
    """Of all the files, one behind the other; with it, cells can be planned where the package is not installed."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """The globs."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def identity(self, roots: Roots) -> Json:
        # What is stated is checked when it is read: a project's specs are validated without a look at what they would read.
        content = self.sha256 or known_digest(*self.paths(roots))
        made = {"sha256": content, "field": self.field, "split_on": self.split_on}
        kinds = {TextFile.at(Path(pattern)).kind for pattern in self.patterns}
        return {**made, "kinds": sorted(kinds), **self.chosen_rows}

    def paths(self, roots: Roots) -> list[Path]:
        """In the order of the patterns. Raises Unpinnable where the package is not installed, RefusedFile for other content."""
        found = (path for pattern in self.patterns for path in package_files(self.package, pattern, self.version))
        files = list(dict.fromkeys(found))
        check_sha256(f"the texts of the package {self.package}", files, self.sha256)
        return files

    def pinned(self, roots: Roots) -> Self:
        """Itself. Raises Unpinnable where what it reads is not known, and cells that need it are then named and left out;
        RefusedFile for other content than is stated."""
        with suppress(*[Unpinnable] if self.sha256 else []):
            self.paths(roots)
        return self


def _matching(path: str, roots: Roots) -> list[Path]:
    """The files that a path or glob of the project means, sorted. Raises NotAvailable when there are none."""
    fixed, pattern = _split_glob(path)
    base = roots.resolve(fixed)
    found = sorted(p for p in base.glob(pattern) if p.is_file()) if pattern else [base]
    if not found or not found[0].is_file():
        raise NotAvailable(f"no file matches {path!r} (paths are relative to the project {roots.project.name}/)")
    for one in found:
        roots.resolve(str(one))  # a symbolic link may lead out of the project
    return found


def _split_glob(path: str) -> tuple[str, str]:
    """`data/*/x.txt` as ("data", "*/x.txt"); a path without wildcards as (path, "")."""
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), None)
    if first is None:
        return path, ""
    if ".." in parts[first:]:
        raise ValueError(f"{path!r}: no '..' after a wildcard")
    return "/".join(parts[:first]) or (path[:1] if path.startswith("/") else "."), "/".join(parts[first:])


class HuggingFaceDataset(DatasetAdapter):
    """Rows of a hub dataset in their stored order."""

    adapter: Literal["huggingface"] = "huggingface"
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", max_length=200)]
    """Hub id such as `HuggingFaceFW/fineweb`."""
    config: str | None = None
    """Configuration (subset) of the dataset."""
    split: str = "train"
    """Split of the dataset."""
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$", max_length=100)] = "main"
    """Commit, tag or branch; state a commit so that the documents cannot change."""
    field: Annotated[str, Field(min_length=1)] = "text"
    """Column that holds the text."""
    label: Annotated[str, Field(min_length=1)] | None = None
    """Column that holds the label, for probing and concepts: the dataset is one set, called by its id."""

    _newer: ClassVar[tuple[str, ...]] = (*DatasetAdapter._newer, "label")

    def identity(self, roots: Roots) -> Json:
        check_dataset(self.id, roots.project)
        made = {
            "hub": self.id,
            "config": self.config,
            "split": self.split,
            "revision": self.revision,
            "field": self.field,
        }
        return made if self.label is None else made | {"label": self.label}

    def pinned(self, roots: Roots) -> Self:
        if is_commit(self.revision):
            return self
        return self.model_copy(update={"revision": resolved_commit("dataset", self.id, self.revision)})

    def texts(self, roots: Roots) -> Iterator[str]:
        for row in self._rows():
            yield row[self.field]

    def labelled(self, roots: Roots) -> Mapping[str, Iterable[tuple[str, str]]]:
        """One set, by the dataset's id."""
        if self.label is None:
            raise InvalidInput(NO_LABEL)
        check_dataset(self.id, roots.project)
        return {self.id: self._labels(self.label)}

    def _labels(self, column: str) -> Iterator[tuple[str, str]]:
        for row in self._rows():
            if (value := row.get(column)) is None:
                raise InvalidInput(f"{self.id}: a row has no label under {column!r}; columns: {', '.join(row)}")
            yield row[self.field], label_text(value)

    def _rows(self) -> Iterator[dict[str, Json]]:
        for row in streamed_rows(self.id, self.config, self.split, self.revision):
            if not isinstance(row.get(self.field), str):
                raise InvalidInput(f"{self.id}: no text under {self.field!r}; columns: {', '.join(row)}")
            yield row


def streamed_rows(name: str, config: str | None, split: str, revision: str) -> Iterator[dict[str, Json]]:
    """Rows of a hub dataset in their stored order. Raises NotAvailable with what to do when they cannot be had."""
    from datasets import load_dataset

    check_dataset(name)
    advice = "go online, or use `adapter: files` with a local copy"
    with foreign(f"the dataset {name!r} cannot be read", advice, NotAvailable):
        yield from load_dataset(name, config, split=split, revision=revision, streaming=True)

"""Packages as pip would have installed them, with a list of their files and no code that may be run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(
    site: Path, name: str, version: str, files: Mapping[str, bytes], listed: tuple[str, ...] | None = None
) -> Path:
    """Puts a package into the folder `site`, which the caller puts on sys.path, and returns its information's folder.

    Every package has a module that raises when it is imported. `listed` stands in its RECORD in place of the files' names.
    """
    module = name.replace("-", "_")
    held = {f"{module}/__init__.py": b"raise SystemExit('code of a package was run')\n", **files}
    for path, content in held.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
    information = site / f"{module}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (information / "RECORD").write_text("".join(f"{path},,\n" for path in (listed or held)))
    return information

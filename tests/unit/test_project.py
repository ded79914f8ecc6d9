"""What a name means: files, specs, folders and globs, none of which hides another."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.spec.project import Project, spec_paths


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in (
        "both.yaml",
        "both/one.yaml",
        "both/_base/parent.yaml",
        "both/deep/two.yml",
        "other.yml",
        "other/x.yaml",
    ):
        path = tmp_path / "specs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, tmp_path / "results", tmp_path / "results/store")


def names(project: Project, *given: str) -> list[str]:
    return [str(path.relative_to(project.root)) for path in spec_paths(project, given)]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("both", ["specs/both.yaml", "specs/both/deep/two.yml", "specs/both/one.yaml"]),
        ("both.yaml", []),
        ("specs/both.yaml", ["specs/both.yaml"]),
        ("both/", ["specs/both/deep/two.yml", "specs/both/one.yaml"]),
        ("specs/both", ["specs/both/deep/two.yml", "specs/both/one.yaml"]),
        ("other", ["specs/other.yml", "specs/other/x.yaml"]),
        ("both/one", ["specs/both/one.yaml"]),
        ("specs/*.y*ml", ["specs/both.yaml", "specs/other.yml"]),
    ],
)
def test_a_name_means_all_that_has_it(project: Project, given: str, meant: list[str]) -> None:
    if meant:
        assert names(project, given) == meant
    else:
        with pytest.raises(InvalidInput, match="no spec matches"):
            names(project, given)


def test_a_folder_here_hides_no_spec(project: Project) -> None:
    """`results/` stands in every project; a spec may be called so too."""
    (project.root / "results").mkdir()
    (project.root / "specs/results.yaml").write_text("{}")
    assert names(project, "results") == ["specs/results.yaml"]
    (project.root / "both").mkdir()
    assert names(project, "both/one", "both")[0] == "specs/both/one.yaml"
    assert "specs/both.yaml" in names(project, "both")


def test_two_endings_hide_nothing(project: Project) -> None:
    (project.root / "specs/other.yaml").write_text("{}")
    assert names(project, "other")[:2] == ["specs/other.yaml", "specs/other.yml"]


def test_everything_is_meant_once(project: Project) -> None:
    assert len(names(project, "both", "both/one", "specs/both.yaml")) == 3


@pytest.mark.parametrize("text", ["\0", "x" * 5000, "/nowhere/*.yaml", "**", "../*"])
def test_strange_names_match_nothing_or_what_is_there(project: Project, text: str) -> None:
    try:
        assert names(project, text)
    except (InvalidInput, ValueError):
        return


def test_links_that_stay_inside_are_followed(tmp_path: Path) -> None:
    (tmp_path / "project/data").mkdir(parents=True)
    (tmp_path / "project/data/x").write_text("x")
    (tmp_path / "project/folder").mkdir()
    (tmp_path / "project/folder/x").symlink_to("../data/x")
    roots = Roots(tmp_path / "project")
    roots.check_links(tmp_path / "project/folder")
    assert roots.resolve("folder/x") == tmp_path / "project/data/x"


@pytest.mark.parametrize("name", ["x", "sub/x", "folder"])
def test_links_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "project/sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    link = tmp_path / "project" / name
    link.symlink_to(tmp_path if name == "folder" else tmp_path / "secret")
    with pytest.raises(ValueError, match=f"{name} is a link that leads outside"):
        Roots(tmp_path / "project").check_links(tmp_path / "project")
    Roots(tmp_path / "project", (tmp_path,)).check_links(tmp_path / "project")

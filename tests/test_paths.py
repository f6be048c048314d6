# SPDX-License-Identifier: MIT
"""Paths that a user gives: what is wrong with one is said plainly, and what is accepted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import uswap
from uswap.paths import check_parent, open_to_read, path_of, say, why_no_directory

from child import run_child


def test_path_of() -> None:
    """Text and pathlib's paths are paths."""
    assert path_of("/a", "swapfile") == path_of(Path("/a"), "swapfile") == "/a"
    for wrong in (5, None, b"/a", ["/a"]):
        with pytest.raises(TypeError, match=r"swapfile=.* is a \w+; accepted: a path"):
            path_of(wrong, "swapfile")


@pytest.mark.parametrize("path", ["", "new", "there/", "there/new", "file", "link/new"])
def test_parent_is_there(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, new or not, in a directory that exists, and the directory itself, will do."""
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("file").touch()
    Path("link").symlink_to("there")
    check_parent(path, "swapfile")
    check_parent(os.path.join(tmp_path, path), "swapfile")


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("none/new", FileNotFoundError, "directory '{}none' does not exist"),
        ("none/", FileNotFoundError, "directory '{}none' does not exist"),
        ("there/none/deep/new", FileNotFoundError, "directory '{}there/none' does not exist"),
        ("file/new", NotADirectoryError, "'{}file' is not a directory"),
        ("file/deep/new", NotADirectoryError, "'{}file' is not a directory"),
        ("file/", NotADirectoryError, "'{}file' is not a directory"),
        ("dangling/new", FileNotFoundError, "directory '{}dangling' is a link to nothing"),
    ],
)
def test_parent_is_missing(
    path: str,
    error: type[OSError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error has the class that fits, and names the first directory that is missing."""
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("file").touch()
    Path("dangling").symlink_to("nothing")
    for prefix in ("", f"{tmp_path}/"):
        with pytest.raises(error) as caught:
            check_parent(prefix + path, "swapfile")
        assert type(caught.value) is error
        assert caught.value.filename == prefix + path
        wanted = f"swapfile: {message.format(prefix)}; accepted: a directory that exists"
        assert (caught.value.strerror or "").startswith(wanted)


def test_why_no_directory(tmp_path: Path) -> None:
    """Missing, no directory, and not to be written to are told apart."""
    (tmp_path / "file").touch()
    assert why_no_directory(str(tmp_path)) is None
    assert why_no_directory(str(tmp_path / "none")) == "does not exist"
    assert why_no_directory(str(tmp_path / "file")) == "is not a directory"
    if os.geteuid() != 0:
        assert why_no_directory("/") == "can't be written to by this user"


def test_open_to_read(tmp_path: Path) -> None:
    """What can't be read is said in words, with what is accepted."""
    (tmp_path / "file").write_bytes(b"text")
    fd = open_to_read(str(tmp_path / "file"), "a trace")
    assert os.read(fd, 5) == b"text"
    os.close(fd)
    for path, words in (("none", "there is no such file"), ("", "is a directory")):
        name = str(tmp_path / path)
        with pytest.raises(OSError, match="accepted: a trace") as caught:
            open_to_read(name, "a trace")
        assert say(caught.value) == f"{name}: {words}; accepted: a trace"
    assert say(OSError("as it is")) == "as it is"


def missing(directory: str) -> None:
    """What the child of test_pager_names_the_directory runs."""
    before = len(os.listdir("/proc/self/fd"))
    for option in ("swapfile", "trace"):
        for path in (f"{directory}/none/x", f"{directory}/none/", Path(directory) / "none" / "x"):
            with pytest.raises(FileNotFoundError, match=f"{option}: directory '.*/none' does not"):
                uswap.Pager(limit="1MiB", pool="4MiB", **{option: path})
        with pytest.raises(NotADirectoryError, match=f"{option}: '.*/file' is not a directory"):
            uswap.Pager(limit="1MiB", pool="4MiB", **{option: f"{directory}/file/x"})
    assert len(os.listdir("/proc/self/fd")) == before


def test_pager_names_the_directory(tmp_path: Path) -> None:
    """A swap file or a trace in a directory that is not there: it says which, and leaves nothing open."""
    (tmp_path / "file").touch()
    run_child(missing, args=[str(tmp_path)], timeout=60)

"""Session archives come from a container and go into another one: hostile ones are refused on both sides.

Attack classes 18 and 26.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from runners.gateway.desk import BadMessage, Desk
from runners.shim import MAX_SESSION, SessionRefused, check_session, pack_session, unpack_session

Member = tuple[tarfile.TarInfo, bytes]


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **attributes: object) -> Member:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.size = len(data)
    for key, value in attributes.items():
        setattr(member, key, value)
    return member, data


def archive(path: Path, *members: Member, mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def sparse_bomb(path: Path) -> Path:
    """A few bytes that claim to be a file of one terabyte (GNU's sparse format 1.0)."""
    huge = 1 << 40
    data = b"1\n0\n1\n".ljust(512, b"\0")
    member, _ = entry("bomb")
    member.size = len(data)
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "bomb",
        "GNU.sparse.realsize": str(huge),
    }
    return archive(path, (member, data))


def claimed(path: Path) -> Path:
    """A header that claims more than all limits together, with nothing behind it."""
    member, _ = entry("big")
    member.size = MAX_SESSION + 1
    path.write_bytes(member.tobuf(tarfile.PAX_FORMAT))
    return path


def too_big(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(2 * MAX_SESSION + 1)
    return path


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "absolute": lambda path: archive(path, entry("/etc/passwd", b"x")),
    "parent": lambda path: archive(path, entry("../escape", b"x")),
    "parent inside": lambda path: archive(path, entry("a/../../escape", b"x")),
    "our own folder": lambda path: archive(path, entry(".conductor/gitconfig", b"x")),
    "the home itself": lambda path: archive(path, entry(".", kind=tarfile.DIRTYPE)),
    "link": lambda path: archive(path, entry("link", kind=tarfile.SYMTYPE, linkname="/etc")),
    "link, then through it": lambda path: archive(
        path, entry("link", kind=tarfile.SYMTYPE, linkname="/tmp"), entry("link/file", b"x")
    ),
    "hard link": lambda path: archive(path, entry("hard", kind=tarfile.LNKTYPE, linkname="/etc/passwd")),
    "character device": lambda path: archive(
        path, entry("dev", kind=tarfile.CHRTYPE, devmajor=1, devminor=3)
    ),
    "block device": lambda path: archive(path, entry("dev", kind=tarfile.BLKTYPE, devmajor=8, devminor=0)),
    "pipe": lambda path: archive(path, entry("pipe", kind=tarfile.FIFOTYPE)),
    "file as a folder": lambda path: archive(path, entry("a", b"x"), entry("a/b", b"x")),
    "sparse bomb": sparse_bomb,
    "claimed size": claimed,
    "more than the limit": lambda path: archive(path, *(entry(f"f{n}", b"x" * (60 << 20)) for n in range(2))),
    "too many files": lambda path: written(path, entry("f")[0].tobuf() * 20_001),
    "too large": too_big,
    "compressed": lambda path: archive(path, entry("a", b"x"), mode="w:gz"),
    "no tar": lambda path: written(path, b"x" * 2000),
    "cut off": lambda path: written(path, archive(path, entry("a", b"x" * 9000)).read_bytes()[:3000]),
}
#: Found by the one who unpacks only: the archive itself is a legal one.
ONLY_UNPACKING = {"file as a folder"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_not_unpacked(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with pytest.raises(SessionRefused):
        unpack_session(HOSTILE[name](tmp_path / "session.tar"), home)
    left = [path for path in home.rglob("*") if not path.is_dir()]
    assert left == ([home / "a"] if name in ONLY_UNPACKING else [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "session.tar"]


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - ONLY_UNPACKING))
def test_a_hostile_archive_is_not_kept_by_the_host(tmp_path: Path, name: str) -> None:
    desk = Desk.create(tmp_path / "desk", attempt_id="j1-1", mirror=None)
    desk.close()
    with pytest.raises(BadMessage, match="session is refused"):
        desk.take_session(HOSTILE[name](tmp_path / "session.tar"))
    assert not desk.session_tar.exists()


def test_unpacking_writes_through_no_link_that_is_there_already(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    outside.mkdir()
    (outside / "file").write_text("precious")
    (home / "folder").symlink_to(outside)
    (home / "file").symlink_to(outside / "file")
    with pytest.raises(SessionRefused, match="not a folder"):
        unpack_session(archive(tmp_path / "one.tar", entry("folder/new", b"x")), home)
    unpack_session(archive(tmp_path / "two.tar", entry("file", b"x")), home)
    assert (outside / "file").read_text() == "precious"
    assert list(outside.iterdir()) == [outside / "file"]
    assert (home / "file").read_text() == "x"
    assert not (home / "file").is_symlink()


def test_owners_and_dangerous_modes_are_not_taken_over(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    unpack_session(archive(tmp_path / "s.tar", entry("a/tool", b"x", mode=0o6777, uid=1234, gid=1234)), home)
    status = (home / "a" / "tool").stat()
    assert status.st_mode & 0o7777 == 0o700
    assert status.st_uid == os.getuid()


def test_packing_follows_no_link_and_takes_only_plain_files_below_the_paths(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".tool" / "sub").mkdir(parents=True)
    (home / ".tool" / "sub" / "log").write_text("kept")
    (home / ".tool" / "secret").symlink_to("/etc/passwd")
    (home / ".tool" / "folder").symlink_to("/etc")
    os.mkfifo(home / ".tool" / "pipe")
    (home / "other").write_text("not asked for")
    (home / "link").symlink_to("/etc")
    target = tmp_path / "out.tar"
    assert pack_session(home, [".tool", "link/passwd", "link", "missing"], target) == 1
    with tarfile.open(target) as tar:
        assert tar.getnames() == [".tool/sub/log"]
    check_session(target)


@pytest.mark.parametrize("path", ["../x", "/etc", "", ".", ".conductor", ".conductor/x"])
def test_packing_refuses_paths_outside_of_home(tmp_path: Path, path: str) -> None:
    with pytest.raises(SessionRefused):
        pack_session(tmp_path, [path], tmp_path / "out.tar")


def test_packing_stops_at_the_limit(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with (home / "big").open("wb") as file:
        file.truncate(MAX_SESSION + 1)
    with pytest.raises(SessionRefused, match="more than 100 MB"):
        pack_session(home, ["big"], tmp_path / "out.tar")


def test_what_was_packed_is_what_is_unpacked(tmp_path: Path) -> None:
    home, second = tmp_path / "home", tmp_path / "second"
    (home / "ä" / ("n" * 120)).mkdir(parents=True)
    second.mkdir()
    (home / "ä" / ("n" * 120) / "log").write_bytes(bytes(range(256)) * 100)
    (home / "ä" / "run").write_text("#!/bin/sh")
    (home / "ä" / "run").chmod(0o755)
    assert pack_session(home, ["ä"], tmp_path / "out.tar") == 2
    unpack_session(tmp_path / "out.tar", second)
    assert (second / "ä" / ("n" * 120) / "log").read_bytes() == bytes(range(256)) * 100
    assert (second / "ä" / "run").stat().st_mode & 0o777 == 0o700
    unpack_session(tmp_path / "out.tar", second)  # again, over what is there

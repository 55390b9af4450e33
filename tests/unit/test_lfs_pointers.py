"""Pointer files: what git-lfs takes for one, and what it does not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.lfs import MAX_POINTER, Pointer, parse_pointer, valid_oid
from runners.lfs_store import ObjectCache, ObjectFolder, ObjectRefused

OID = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"


def test_the_example_of_the_specification() -> None:
    # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize 12345\n"
    assert parse_pointer(text.encode()) == Pointer(OID, 12345)
    assert Pointer(OID, 12345).text() == text


@given(st.binary(max_size=100), st.integers(0, 2**50))
def test_what_is_written_is_read(content: bytes, size: int) -> None:
    pointer = Pointer(hashlib.sha256(content).hexdigest(), size)
    assert parse_pointer(pointer.text().encode()) == pointer


@given(st.binary(max_size=2000))
def test_anything_is_answered(content: bytes) -> None:
    found = parse_pointer(content)
    assert found is None or valid_oid(found.oid)


@pytest.mark.parametrize(
    "text",
    [
        f"version https://hawser.github.com/spec/v1\noid sha256:{OID}\nsize 12345\n",
        f"version http://git-media.io/v/2\noid sha256:{OID}\nsize 12345",
        f"\n version https://git-lfs.github.com/spec/v1\r\noid sha256:{OID}\r\nsize 12345\r\n\r\n",
        f"version https://git-lfs.github.com/spec/v1\next-0-foo sha256:{'b' * 64}\noid sha256:{OID}\nsize 12345\n",
    ],
    ids=["older", "oldest", "other line ends", "extension"],
)
def test_what_the_client_takes_is_taken(text: str) -> None:
    assert parse_pointer(text.encode()) == Pointer(OID, 12345)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version 2\n",
        f"oid sha256:{OID}\nsize 1\n",
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\n",
        f"version https://git-lfs.github.com/spec/v1\noid md5:{OID}\nsize 1\n",
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID[:-1]}\nsize 1\n",
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID.upper()}\nsize 1\n",
        "version https://git-lfs.github.com/spec/v1\noid sha256:../../../../etc/passwd\nsize 1\n",
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize -1\n",
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize {'9' * 30}\n",
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize 1\n" + "x" * MAX_POINTER,
    ],
)
def test_what_is_no_pointer(text: str) -> None:
    assert parse_pointer(text.encode()) is None


# --- what lies on the disk ------------------------------------------------------------------------------


async def pieces(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


async def test_an_object_comes_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = ObjectFolder(tmp_path / "objects")
    oid = hashlib.sha256(b"one two").hexdigest()
    assert folder.find(oid) is None
    path = await folder.take(oid, 7, pieces(b"one ", b"two"), limit=100)
    assert path.read_bytes() == b"one two"
    assert folder.find(oid) == path
    assert [file for file in (tmp_path / "objects").rglob("*") if file.is_file()] == [path]


@pytest.mark.parametrize(
    ("content", "size", "limit", "says"),
    [
        (b"other", None, 100, "another content"),
        (b"one two", 8, 100, "another content"),
        (b"one two", 6, 100, "longer than 6 bytes"),
        (b"one two", None, 6, "longer than 6 bytes"),
    ],
)
async def test_what_is_not_what_it_says_is_not_kept(
    tmp_path: Path, content: bytes, size: int | None, limit: int, says: str
) -> None:
    folder = ObjectFolder(tmp_path / "objects")
    oid = hashlib.sha256(b"one two").hexdigest()
    with pytest.raises(ObjectRefused, match=says):
        await folder.take(oid, size, pieces(content), limit=limit)
    assert folder.find(oid) is None
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


async def test_the_longest_unused_objects_go(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, limit=10_000)
    oids = []
    for number in range(4):
        content = bytes([number]) * 4000
        oids.append(hashlib.sha256(content).hexdigest())
        folder = cache.folder(1, number)
        path = await folder.take(oids[-1], 4000, pieces(content), limit=4000)
        os.utime(path, (1000 + number, 1000 + number))
    assert cache.folder(1, 0).find(oids[0]) is not None  # used now
    await cache.grown(4000)
    left = [number for number in range(4) if cache.folder(1, number).find(oids[number]) is not None]
    assert left == [0, 3]


async def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, limit=10_000)
    old, new = (tmp_path / "1" / "2" / name for name in ("incoming-old", "incoming-new"))
    old.parent.mkdir(parents=True)
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1000, 1000))
    await cache.grown(1)
    assert not old.exists()
    assert new.exists()


def test_repositories_do_not_share_objects(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, limit=1)
    folders = {cache.folder(installation, repo).folder for installation in (1, 2) for repo in (1, 2)}
    assert len(folders) == 4

"""What of a set-up container's home folder may get into an image."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.images import SetupTooLarge, home_archive
from runners.shim import EXCLUDED


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **values: object
) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    found.size, found.type, found.uid, found.gid, found.mode = len(data), kind, 1000, 1000, 0o644
    for key, value in values.items():
        setattr(found, key, value)
    return found, data


def through(
    archive: bytes, chunk: int = 1000, **options: int
) -> dict[str, tuple[tarfile.TarInfo, bytes | None]]:
    chunks: Iterable[bytes] = (archive[at : at + chunk] for at in range(0, len(archive), chunk))
    out = io.BytesIO(b"".join(home_archive(chunks, **options)))
    with tarfile.open(fileobj=out) as tar:
        return {
            each.name: (each, file.read() if each.isreg() and (file := tar.extractfile(each)) else None)
            for each in tar
        }


@given(st.lists(st.binary(max_size=3000), max_size=5), st.integers(min_value=1, max_value=2000))
def test_files_come_through_as_they_are(contents: list[bytes], chunk: int) -> None:
    files = [member(f"agent/dir/{number}", data) for number, data in enumerate(contents)]
    found = through(packed(member("agent", kind=tarfile.DIRTYPE, mode=0o755), *files), chunk)
    assert [data for _, data in list(found.values())[1:]] == contents
    assert {(each.uid, each.gid) for each, _ in found.values()} == {(1000, 1000)}


def test_links_and_long_names_are_kept() -> None:
    deep = "agent/" + "/".join(["x" * 60] * 8)
    found = through(
        packed(
            member("agent/a", b"1"),
            member("agent/hard", kind=tarfile.LNKTYPE, linkname="agent/a"),
            member("agent/soft", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
            member(deep, b"2"),
            member("agent/sp\u00e4t \n", b"3"),
        )
    )
    assert found["agent/hard"][0].linkname == "agent/a"
    assert found["agent/soft"][0].issym()
    assert found[deep][1] == b"2"
    assert found["agent/sp\u00e4t \n"][1] == b"3"


def test_the_shims_folder_devices_and_set_id_bits_are_not() -> None:
    found = through(
        packed(
            member("agent/" + EXCLUDED, kind=tarfile.DIRTYPE),
            member(f"agent/{EXCLUDED}/gitconfig", b"secret"),
            member(f"agent/kept/{EXCLUDED}", b"mine"),
            member("agent/disk", kind=tarfile.BLKTYPE, devmajor=8),
            member("agent/tty", kind=tarfile.CHRTYPE),
            member("agent/pipe", kind=tarfile.FIFOTYPE),
            member("agent/tool", b"x", mode=0o6755),
            member("agent/shared", kind=tarfile.DIRTYPE, mode=0o3777),
        )
    )
    assert set(found) == {f"agent/kept/{EXCLUDED}", "agent/tool", "agent/shared"}
    assert found["agent/tool"][0].mode == 0o755
    assert found["agent/shared"][0].mode == 0o1777


def test_more_than_an_image_may_hold_is_refused() -> None:
    archive = packed(member("agent/a", bytes(1 << 20)), member("agent/b", b"1"))
    assert set(through(archive, limit=(1 << 20) + 1)) == {"agent/a", "agent/b"}
    with pytest.raises(SetupTooLarge, match="more than 1 MiB"):
        through(archive, limit=1 << 20)


def test_a_tar_that_was_cut_off_is_an_error() -> None:
    with pytest.raises(tarfile.ReadError):
        through(packed(member("agent/a", bytes(5000)))[:2000])

"""Prints which registries the package managers of this system are configured for, as JSON.

``presets``: preset -> URLs or hosts; ``silent``: programs that did not answer in time.

Sent into a locked container of an image as `python3 -I -c`, so it stands alone: standard library of Python 3.8. What
is not installed is left out. No name of a registry stands here: each package manager is asked for its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SECONDS = 45
SILENT: list[str] = []
_URL = re.compile(r"https?://[^\s'\"<>,|)\]]+")

#: Asks a Python's pip: its configuration, or else where it goes by default, for pages and for files.
PIP = """
from pip._internal.configuration import Configuration
from pip._internal.models.index import PyPI
configuration = Configuration(isolated=False)
configuration.load()
found = {}
for name, value in configuration.items():
    found.update(value if isinstance(value, dict) else {name: value})
values = {name.split(".", 1)[-1]: str(value) for name, value in found.items()}
hosts = [values[name] for name in ("index-url", "extra-index-url", "find-links") if name in values]
if "index-url" not in values:
    hosts += [PyPI.url, "https://" + PyPI.file_storage_domain]
print(" ".join(hosts))
"""


def said(*argv: str) -> str:
    """What a program prints, or nothing when it is not there, fails or takes too long."""
    program = shutil.which(argv[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            cwd="/",
            check=True,
        )
    except subprocess.TimeoutExpired:
        SILENT.append(argv[0])
        return ""
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.decode("utf-8", "replace")


def urls(text: str) -> list[str]:
    """The http(s) URLs in a text."""
    return _URL.findall(text)


def text_of(path: Path) -> str:
    """A file's text; empty when there is none."""
    return path.read_text("utf-8", "replace") if path.is_file() else ""


def pypi() -> list[str]:
    """Where every Python on the PATH that has pip gets packages."""
    programs: dict[Path, str] = {}
    for folder in os.environ.get("PATH", "").split(":"):
        for path in sorted(Path(folder or "/nonexistent").glob("python[3.]*")):
            if re.fullmatch(r"python[0-9.]*", path.name):
                programs.setdefault(path.resolve(), str(path))
    return [url for program in programs.values() for url in urls(said(program, "-I", "-c", PIP))]


def npm() -> list[str]:
    """The registries of npm, with those of scopes, and the one of Yarn."""
    values = json.loads(said("npm", "config", "list", "--json") or "{}")
    own = [str(value) for name, value in values.items() if name == "registry" or name.endswith(":registry")]
    return own + urls(said("yarn", "config", "get", "registry"))


def debian() -> list[str]:
    """What apt's sources name (sources.list(5)), in both of their forms."""
    if shutil.which("apt-get") is None:
        return []
    parts = Path("/etc/apt/sources.list.d")
    found = []
    for path in [
        Path("/etc/apt/sources.list"),
        *sorted(parts.glob("*.list")),
        *sorted(parts.glob("*.sources")),
    ]:
        for line in text_of(path).splitlines():
            if not line.lstrip().startswith("#"):
                found += urls(line)
    return found


def go() -> list[str]:
    """Go's module proxy and its checksum database, which may be a bare host or come with its key."""
    words = re.split(r"[,|\s]+", said("go", "env", "GOPROXY", "GOSUMDB"))
    return [re.sub(r"\+.*", "", word) for word in words if "." in word]


def gem() -> list[str]:
    """The sources of RubyGems."""
    return urls(said("gem", "sources", "--list"))


def maven() -> list[str]:
    """The mirrors in Maven's settings, and the repository of its built-in parent of all projects."""
    program = shutil.which("mvn")
    if program is None:
        return []
    home = Path(program).resolve().parents[1]
    texts = [text_of(home / "conf" / "settings.xml"), text_of(Path("/etc/maven/settings.xml"))]
    for path in home.glob("lib/maven-model-builder-*.jar"):
        with zipfile.ZipFile(path) as jar:
            texts += [
                jar.read(name).decode("utf-8", "replace")
                for name in jar.namelist()
                if re.fullmatch(r"org/apache/maven/model/pom-[\d.]+\.xml", name)
            ]
    found = []
    for text in texts:
        for part in re.findall(r"<url>(.*?)</url>", re.sub(r"<!--.*?-->", "", text, flags=re.S), re.S):
            found += urls(part)
    return found


def answer(ask: Callable[[], list[str]]) -> list[str]:
    """What one says; nothing when its configuration is not what we know."""
    try:
        return ask()
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile):
        return []


def main() -> None:
    """Ask all at once."""
    asks = (pypi, npm, debian, go, gem, maven)
    with ThreadPoolExecutor(len(asks)) as threads:
        answers = threads.map(answer, asks)
        found = {ask.__name__: hosts for ask, hosts in zip(asks, answers) if hosts}  # noqa: B905 - Python 3.8
    sys.stdout.write(json.dumps({"presets": found, "silent": SILENT}))


if __name__ == "__main__":
    main()

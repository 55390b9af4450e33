"""The world as it is at the beginning: one organization, one repository, five people and the App."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bot.sandbox.github import GitHub
from bot.sandbox.state import App, Installation, User, World

APP_PERMISSIONS: Mapping[str, str] = {
    "contents": "write",
    "issues": "write",
    "pull_requests": "write",
    "checks": "write",
    "metadata": "read",
    "statuses": "read",
    "actions": "read",
    "members": "read",
    "merge_queues": "read",
}
"""What the App is granted unless told otherwise."""

APP_EVENTS = (
    "issues",
    "issue_comment",
    "label",
    "pull_request",
    "pull_request_review",
    "pull_request_review_comment",
    "push",
    "check_run",
    "check_suite",
    "repository",
    "merge_group",
    "status",
)
"""What the App subscribes to."""

PEOPLE = {"octocat": "admin", "maria": "write", "tom": "triage", "rita": "read", "mallory": "none"}
"""Who there is, and their role in ``acme/hello``."""

REPOSITORY = "acme/hello"

FILES: Mapping[str, str] = {
    "README.md": """\
# hello

Greets people, politely and in their own language.

    $ python -m hello Ada
    Hello, Ada!

## Development

Run the tests with `python -m unittest`. There is nothing to install.
""",
    "pyproject.toml": """\
[project]
name = "hello"
version = "1.0.0"
description = "Greets people"
requires-python = ">=3.9"
""",
    "hello/__init__.py": '"""Greets people."""\n',
    "hello/__main__.py": '''\
"""Command line: python -m hello NAME [LANGUAGE]."""

import sys

from hello.greeting import greet

if len(sys.argv) not in (2, 3):
    sys.exit("usage: python -m hello NAME [LANGUAGE]")
print(greet(*sys.argv[1:]))
''',
    "hello/greeting.py": '''\
"""What to say to whom."""

GREETINGS = {"en": "Hello", "de": "Hallo", "fr": "Bonjour"}


def greet(name: str, language: str = "en") -> str:
    """Return the greeting for one person."""
    if not name.strip():
        raise ValueError("nobody to greet")
    return f"{GREETINGS[language]}, {name}!"
''',
    "tests/__init__.py": "",
    "tests/test_greeting.py": """\
import unittest

from hello.greeting import greet


class Greeting(unittest.TestCase):
    def test_english_is_the_default(self):
        self.assertEqual(greet("Ada"), "Hello, Ada!")

    def test_other_languages(self):
        self.assertEqual(greet("Ada", "fr"), "Bonjour, Ada!")

    def test_nobody(self):
        with self.assertRaises(ValueError):
            greet(" ")


if __name__ == "__main__":
    unittest.main()
""",
}


def new_private_key() -> str:
    """An RSA key for an App, as PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    return pem.decode()


def new_world(
    now: datetime, *, permissions: Mapping[str, str], private_key: str, webhook_secret: str
) -> World:
    """The accounts, and the App with its installation on ``acme``."""
    app = App(
        id=424242,
        client_id="Iv23liSandboxConductor",
        slug="agent-conductor",
        name="Agent Conductor",
        owner="acme",
        created_at=now,
        webhook_secret=webhook_secret,
        private_key=private_key,
        events=list(APP_EVENTS),
        permissions=dict(permissions),
    )
    world = World(app)
    for login, kind in {
        "acme": "Organization",
        app.bot_login: "Bot",
        **dict.fromkeys(PEOPLE, "User"),
    }.items():
        world.users[login] = User(world.next_id(), login, kind)
    world.users["acme"].members["octocat"] = "admin"
    installation = Installation(world.next_id(), "acme", dict(permissions), list(APP_EVENTS), now)
    world.installations[installation.id] = installation
    return world


async def add_repository(github: GitHub) -> None:
    """Make ``acme/hello``: a public repository with a small program that works."""
    await github.create_repository(
        REPOSITORY,
        files=FILES,
        description="Greets people",
        collaborators={login: role for login, role in PEOPLE.items() if role != "none"},
        author="octocat",
    )

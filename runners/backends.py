"""The container backends by name, imported when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bot.errors import ConfigurationError

if TYPE_CHECKING:
    from bot.config import Settings
    from bot.ports import Runner

#: Short name -> dotted path of a class that is made from the settings alone.
BACKENDS = {
    "docker": "runners.docker.DockerRunner",
    "local": "runners.local.LocalRunner",
}


def create_runner(name: str, settings: Settings) -> Runner:
    """The runner called ``name``: a short name, or the dotted path of a class of one's own.

    Raises ConfigurationError when there is none, or when it refuses the settings.
    """
    module_name, _, class_name = BACKENDS.get(name, name).rpartition(".")
    if not module_name:
        raise ConfigurationError(
            f"There is no runner called {name!r}.",
            f"Set CONDUCTOR_RUNNER to {' or '.join(sorted(BACKENDS))}, or to the dotted path of a class.",
        )
    try:
        module = importlib.import_module(module_name)
        factory = getattr(module, class_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"The runner {name!r} cannot be imported: {error}.",
            "Check CONDUCTOR_RUNNER, and that its package is installed beside this one.",
        ) from error
    if not callable(factory):
        raise ConfigurationError(
            f"The runner {name!r} is not a class.", "Name a class that is made from the settings."
        )
    runner: Runner = factory(settings)
    return runner

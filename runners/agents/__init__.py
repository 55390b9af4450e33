"""The coding-agent CLIs: how each is started and how its output is read."""

"""The coding-agent CLIs that a job may name, each a small value: how to start it and how to read it."""

"""Agent Conductor: a self-hosted GitHub App that turns labels and comments into pull requests."""

__version__ = "0.1.0"

"""Agent Conductor: a self-hosted GitHub App that turns labels and comments into pull requests."""

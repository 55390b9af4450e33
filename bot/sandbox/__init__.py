"""The sandbox GitHub: a stateful GitHub on one machine, held against GitHub's official description."""

"""The `conductor` commands, one module each."""

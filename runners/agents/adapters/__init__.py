"""Programs of ours that run in the container, between the shim and a CLI without machine-readable output."""

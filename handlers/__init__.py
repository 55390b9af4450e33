"""What GitHub events mean to us: one behaviour a module, each with its own router."""

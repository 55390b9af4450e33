"""Package data: texts and templates."""

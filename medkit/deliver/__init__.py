"""Using a finished run: chat with its models, and export them."""

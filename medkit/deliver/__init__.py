"""What is done with a finished run: its models asked side by side, and taken elsewhere."""

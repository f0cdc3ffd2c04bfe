"""What is checked before an hour is spent."""

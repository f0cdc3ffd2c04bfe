"""The notebooks, executed in order into one run's folder."""

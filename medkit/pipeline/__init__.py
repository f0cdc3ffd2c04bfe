"""The notebooks, executed in order into one run's folder; a sweep of such runs, here or on a cluster."""

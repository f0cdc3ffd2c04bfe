"""Reading the data sets: declarations, files, converters, contamination, and the built-in corpus."""

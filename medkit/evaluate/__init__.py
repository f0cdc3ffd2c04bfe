"""Evaluation: letters, answers in words, consumer queries, and their statistics."""

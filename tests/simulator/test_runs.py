"""Whole runs: a friendly world first, then drawn ones. A seed that once failed is kept here."""

"""Whole processes on loopback, killed and stopped under load."""

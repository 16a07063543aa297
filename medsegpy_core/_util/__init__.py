"""Helpers that all layers use: limits, locks, stamps of files, lazy exports."""

"""What all layers use and no field has a word for: limits, locks, stamps of files, lazy exports."""

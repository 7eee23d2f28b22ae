"""Whole runs among faults: seeded schedules against the local Azure, after each of which everything must be right."""

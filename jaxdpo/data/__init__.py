"""Preference data, one direction: record → pair → tokenised pair → plan → packed batch."""

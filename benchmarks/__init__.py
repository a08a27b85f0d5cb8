"""Benchmarks: every published figure has the command that makes it here."""

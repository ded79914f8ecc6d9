"""Reasoning accuracy under steering, always against the unsteered model on the same problems."""

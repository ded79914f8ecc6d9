"""Reasoning accuracy under steering, evaluated through lm-eval, always against the unsteered model on the same problems."""

"""Concepts: directions, adapters and prompts made from texts that have a concept and texts that do not, and what they do."""

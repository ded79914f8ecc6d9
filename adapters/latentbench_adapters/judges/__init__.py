"""Judges that are asked in words: `openai` over HTTP, `transformers` on this machine. Neither imports its library until it asks."""

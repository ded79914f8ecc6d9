"""Feature flow (arXiv 2502.03032): latents of neighbouring sites matched to each other, and what the matches are good for."""

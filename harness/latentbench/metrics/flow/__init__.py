"""Studies of feature flow: how well latents of neighbouring layers match, and what the matches are good for."""

"""Questions of simple arithmetic, made on the spot: what small real language models answer sometimes."""

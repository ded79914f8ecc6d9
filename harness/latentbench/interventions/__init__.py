"""What is done to a model while it runs: vectors and adapters that are switched on, leave a receipt, and are gone afterwards; and writing text under them."""

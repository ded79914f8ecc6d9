"""How well an SAE reconstructs hidden states: the shared pass over a domain's documents, the sums it gathers, and the metrics made of them."""

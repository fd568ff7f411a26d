"""Which architectures can be used: tiny models of all, held to an independent oracle, and the list of them."""

"""Surgery on networks: which layers change, to what, and a copy of the network with them."""

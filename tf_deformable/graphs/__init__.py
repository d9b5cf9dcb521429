"""What the graph of a model tells: its calls of layers, and the receptive fields of its maps."""

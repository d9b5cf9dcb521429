"""The Python statement of sizes and their rules, for the reference, functions, layers and graphs."""

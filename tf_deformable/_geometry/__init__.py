"""The Python statement of sizes and their rules: reference, functions, layers and graphs use it."""

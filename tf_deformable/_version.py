"""The version of the package, in one place: setuptools reads it without importing TensorFlow."""

__version__ = "0.2.0.dev0"
"""The version of the package, as `pip` knows it."""

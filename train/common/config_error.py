"""The error of every training configuration."""


class ConfigError(ValueError):
    """A setting cannot be used; the message names it, its value and the remedy."""

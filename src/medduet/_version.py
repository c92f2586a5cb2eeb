"""The version of this package; nothing else imports from the root for it."""

__version__ = "0.1.0"

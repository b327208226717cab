from .standin import loadleveler

__all__ = ["loadleveler"]

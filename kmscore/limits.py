"""Rate limits of whatever has a name, and how many bytes of bodies are kept at once (protocol §7).

Refuses to know whose name it is, and to remember more than `MAX_TRACKED` of them. Times come from the caller's clock.
"""

from kmscore._limits import MAX_TRACKED, BodyBudget, BodyShare, RateLimiter

__all__ = ["MAX_TRACKED", "BodyBudget", "BodyShare", "RateLimiter"]

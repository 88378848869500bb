"""Rate limits of whatever has a name (protocol §7).

Refuses to know whose name it is, and to remember more than `MAX_TRACKED` of them. Times come from the caller's clock.
"""

from kmscore._limits import MAX_TRACKED, RateLimiter

__all__ = ["MAX_TRACKED", "RateLimiter"]

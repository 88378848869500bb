# A circular list in the order of last use, by links inside its members. Whoever is in the list is in a dict, too, which
# owns it: the list borrows.

from cpython.object cimport PyObject


cdef struct Link:
    Link *older
    Link *newer
    PyObject *owner


# `ends` belongs to no member: the newest one is the next older to it, the oldest one the next newer.
cdef inline void open_recency(Link *ends) noexcept nogil:
    ends.older = ends.newer = ends
    ends.owner = NULL


cdef inline void take_out(Link *link) noexcept nogil:
    link.older.newer = link.newer
    link.newer.older = link.older


cdef inline void put_newest(Link *ends, Link *link) noexcept nogil:
    link.older = ends.older
    link.newer = ends
    ends.older.newer = link
    ends.older = link

"""The owner of secret bytes, and the comparison that tells nothing by its time.

Refuses: pickling, copying, printing, iterating, hashing by content. It cannot wipe what Python holds: the `bytes` a
secret is made from and those that `reveal` returns live until the interpreter reuses their memory.
"""

cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from kmscore._ffi.crypto cimport CRYPTO_memcmp, OPENSSL_cleanse

from kmscore.errors import InvariantBroken


cdef void wipe_memory(void* data, size_t size) noexcept nogil:
    OPENSSL_cleanse(data, size)


@cython.final
cdef class SecretBytes:
    """Secret bytes of any length in memory of their own, which is zeroed and freed with the object.

    `data` is copied; the caller's `bytes` cannot be wiped and should not outlive the call. Objects are equal to
    themselves only: compare contents with `matches`. After `wipe` every use raises InvariantBroken.
    """

    def __cinit__(self, bytes data not None):
        cdef const unsigned char* source = data
        self.size = len(data)
        # One byte at least: calloc(0) may answer NULL, which would look like a failure.
        self._data = <unsigned char*>calloc(max(self.size, 1), 1)
        if self._data == NULL:
            raise MemoryError
        memcpy(self._data, source, <size_t>self.size)

    def __dealloc__(self):
        if self._data != NULL:
            OPENSSL_cleanse(self._data, <size_t>self.size)
            free(self._data)
            self._data = NULL

    cdef const unsigned char* pointer(self) except NULL:
        if self._wiped:
            raise InvariantBroken("a secret was used after it had been wiped")
        return self._data

    def __len__(self):
        self.pointer()
        return self.size

    def reveal(self):
        """The secret as `bytes`, for libraries that take nothing else.

        The copy cannot be wiped: keep it in the narrowest scope and never in an attribute.
        Raises InvariantBroken after `wipe`.
        """
        return self.pointer()[:self.size]

    def matches(self, other not None):
        """Whether `other`, a SecretBytes or `bytes`, holds the same bytes.

        The time depends on the two lengths only, which are not secret (CRYPTO_memcmp).
        Raises InvariantBroken when one of the two is wiped, TypeError for another type.
        """
        cdef const unsigned char* mine = self.pointer()
        cdef const unsigned char* theirs
        cdef Py_ssize_t size
        if isinstance(other, SecretBytes):
            theirs = (<SecretBytes>other).pointer()
            size = (<SecretBytes>other).size
        elif isinstance(other, bytes):
            theirs = <bytes>other
            size = len(<bytes>other)
        else:
            raise TypeError("a secret is compared with SecretBytes or bytes")
        return size == self.size and CRYPTO_memcmp(mine, theirs, <size_t>size) == 0

    def wipe(self):
        """Zeroes the bytes now; calling it again is harmless. Every later use raises InvariantBroken."""
        OPENSSL_cleanse(self._data, <size_t>self.size)
        self._wiped = True

    def __repr__(self):
        if self._wiped:
            return "SecretBytes(wiped)"
        return f"SecretBytes({self.size} bytes)"

    def __reduce_ex__(self, protocol):
        raise TypeError("a secret cannot be pickled")

    def __reduce__(self):
        raise TypeError("a secret cannot be pickled")

    def __copy__(self):
        raise TypeError("a secret cannot be copied")

    def __deepcopy__(self, memo):
        raise TypeError("a secret cannot be copied")


def constant_time_equal(bytes a not None, bytes b not None):
    """Whether `a` and `b` are the same bytes; the time depends on the two lengths only (CRYPTO_memcmp)."""
    cdef const unsigned char* left = a
    cdef const unsigned char* right = b
    return len(a) == len(b) and CRYPTO_memcmp(left, right, <size_t>len(a)) == 0

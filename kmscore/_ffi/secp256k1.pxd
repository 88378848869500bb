# libsecp256k1 0.2.0 or newer, with its recovery module: declarations only. The comment on each names the documented
# success value. The library calls abort() when it is handed an object that no successful call has filled in.

cdef extern from "secp256k1.h" nogil:
    ctypedef struct secp256k1_context:
        pass
    ctypedef struct secp256k1_pubkey:
        pass
    ctypedef struct secp256k1_ecdsa_signature:
        pass
    ctypedef int (*secp256k1_nonce_function)(
        unsigned char* nonce32, const unsigned char* msg32, const unsigned char* key32,
        const unsigned char* algo16, void* data, unsigned int attempt,
    )

    enum:
        SECP256K1_CONTEXT_NONE
        SECP256K1_EC_UNCOMPRESSED

    # Good for everything but computations with secret keys.
    const secp256k1_context* secp256k1_context_static
    # Aborts when the library does not fit the machine; wanted once before secp256k1_context_static is used.
    void secp256k1_selftest()

    # Not NULL.
    secp256k1_context* secp256k1_context_create(unsigned int flags)
    void secp256k1_context_destroy(secp256k1_context* ctx)
    # 1.
    int secp256k1_context_randomize(secp256k1_context* ctx, const unsigned char* seed32)

    # 1 when the key lies in 1..n-1.
    int secp256k1_ec_seckey_verify(const secp256k1_context* ctx, const unsigned char* seckey)
    # 1; not with secp256k1_context_static.
    int secp256k1_ec_pubkey_create(const secp256k1_context* ctx, secp256k1_pubkey* pubkey, const unsigned char* seckey)
    # 1 always; *outputlen is 65 after an uncompressed key.
    int secp256k1_ec_pubkey_serialize(
        const secp256k1_context* ctx, unsigned char* output, size_t* outputlen,
        const secp256k1_pubkey* pubkey, unsigned int flags,
    )
    # 0 when sigin already has its s in the lower half, 1 when it had not; sigout may be NULL.
    int secp256k1_ecdsa_signature_normalize(
        const secp256k1_context* ctx, secp256k1_ecdsa_signature* sigout, const secp256k1_ecdsa_signature* sigin,
    )


cdef extern from "secp256k1_recovery.h" nogil:
    ctypedef struct secp256k1_ecdsa_recoverable_signature:
        pass

    # 1; recid must be 0..3 or the library aborts.
    int secp256k1_ecdsa_recoverable_signature_parse_compact(
        const secp256k1_context* ctx, secp256k1_ecdsa_recoverable_signature* sig,
        const unsigned char* input64, int recid,
    )
    # 1 always.
    int secp256k1_ecdsa_recoverable_signature_convert(
        const secp256k1_context* ctx, secp256k1_ecdsa_signature* sig,
        const secp256k1_ecdsa_recoverable_signature* sigin,
    )
    # 1 always.
    int secp256k1_ecdsa_recoverable_signature_serialize_compact(
        const secp256k1_context* ctx, unsigned char* output64, int* recid,
        const secp256k1_ecdsa_recoverable_signature* sig,
    )
    # 1; not with secp256k1_context_static. noncefp NULL: RFC 6979.
    int secp256k1_ecdsa_sign_recoverable(
        const secp256k1_context* ctx, secp256k1_ecdsa_recoverable_signature* sig, const unsigned char* msghash32,
        const unsigned char* seckey, secp256k1_nonce_function noncefp, const void* ndata,
    )
    # 1; *pubkey is not usable after anything else.
    int secp256k1_ecdsa_recover(
        const secp256k1_context* ctx, secp256k1_pubkey* pubkey,
        const secp256k1_ecdsa_recoverable_signature* sig, const unsigned char* msghash32,
    )

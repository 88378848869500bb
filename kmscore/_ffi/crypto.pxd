# libcrypto (OpenSSL 3.0 or newer): declarations only. The comment on each names the value that means success.

cdef extern from "openssl/crypto.h" nogil:
    void OPENSSL_cleanse(void* ptr, size_t len)
    # 0 when equal; the time depends on len only.
    int CRYPTO_memcmp(const void* a, const void* b, size_t len)


cdef extern from "openssl/params.h" nogil:
    ctypedef struct OSSL_PARAM:
        pass

    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char* key, char* buf, size_t bsize)
    OSSL_PARAM OSSL_PARAM_construct_end()


cdef extern from "openssl/core_names.h" nogil:
    const char* OSSL_MAC_PARAM_DIGEST


cdef extern from "openssl/sha.h" nogil:
    enum:
        SHA256_DIGEST_LENGTH
    # md when it is not NULL, NULL on failure.
    unsigned char* SHA256(const unsigned char* d, size_t n, unsigned char* md)


cdef extern from "openssl/evp.h" nogil:
    ctypedef struct ENGINE:
        pass
    ctypedef struct OSSL_LIB_CTX:
        pass

    ctypedef struct EVP_MD:
        pass
    const EVP_MD* EVP_sha256()
    # NULL on failure. What EVP_sha256() answers is looked up again in each use; what is fetched is not.
    EVP_MD* EVP_MD_fetch(OSSL_LIB_CTX* ctx, const char* algorithm, const char* properties)

    ctypedef struct EVP_MD_CTX:
        pass
    # NULL on failure.
    EVP_MD_CTX* EVP_MD_CTX_new()
    void EVP_MD_CTX_free(EVP_MD_CTX* ctx)
    # 1 on success, each of the four.
    int EVP_MD_CTX_copy_ex(EVP_MD_CTX* out, const EVP_MD_CTX* in_)
    int EVP_DigestInit_ex(EVP_MD_CTX* ctx, const EVP_MD* type, ENGINE* impl)
    int EVP_DigestUpdate(EVP_MD_CTX* ctx, const void* d, size_t cnt)
    int EVP_DigestFinal_ex(EVP_MD_CTX* ctx, unsigned char* md, unsigned int* s)

    ctypedef struct EVP_CIPHER:
        pass
    # NULL on failure.
    EVP_CIPHER* EVP_CIPHER_fetch(OSSL_LIB_CTX* ctx, const char* algorithm, const char* properties)

    ctypedef struct EVP_CIPHER_CTX:
        pass
    # NULL on failure.
    EVP_CIPHER_CTX* EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX* ctx)
    # 1 on success, each of them; a NULL cipher or key keeps what the context has. EVP_DecryptFinal_ex answers another
    # value for a wrong tag.
    int EVP_EncryptInit_ex(
        EVP_CIPHER_CTX* ctx, const EVP_CIPHER* cipher, ENGINE* impl, const unsigned char* key, const unsigned char* iv
    )
    int EVP_EncryptUpdate(EVP_CIPHER_CTX* ctx, unsigned char* out, int* outl, const unsigned char* in_, int inl)
    int EVP_EncryptFinal_ex(EVP_CIPHER_CTX* ctx, unsigned char* out, int* outl)
    int EVP_DecryptInit_ex(
        EVP_CIPHER_CTX* ctx, const EVP_CIPHER* cipher, ENGINE* impl, const unsigned char* key, const unsigned char* iv
    )
    int EVP_DecryptUpdate(EVP_CIPHER_CTX* ctx, unsigned char* out, int* outl, const unsigned char* in_, int inl)
    int EVP_DecryptFinal_ex(EVP_CIPHER_CTX* ctx, unsigned char* out, int* outl)
    enum:
        EVP_CTRL_AEAD_GET_TAG
        EVP_CTRL_AEAD_SET_TAG
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX* ctx, int type, int arg, void* ptr)

    ctypedef struct EVP_MAC:
        pass
    # NULL on failure.
    EVP_MAC* EVP_MAC_fetch(OSSL_LIB_CTX* libctx, const char* algorithm, const char* properties)
    void EVP_MAC_free(EVP_MAC* mac)

    ctypedef struct EVP_MAC_CTX:
        pass
    # NULL on failure, both.
    EVP_MAC_CTX* EVP_MAC_CTX_new(EVP_MAC* mac)
    EVP_MAC_CTX* EVP_MAC_CTX_dup(const EVP_MAC_CTX* src)
    void EVP_MAC_CTX_free(EVP_MAC_CTX* ctx)
    # 1 on success, each of the three.
    int EVP_MAC_init(EVP_MAC_CTX* ctx, const unsigned char* key, size_t keylen, const OSSL_PARAM* params)
    int EVP_MAC_update(EVP_MAC_CTX* ctx, const unsigned char* data, size_t datalen)
    int EVP_MAC_final(EVP_MAC_CTX* ctx, unsigned char* out, size_t* outl, size_t outsize)


cdef extern from "openssl/hmac.h" nogil:
    # md when it is not NULL, NULL on failure.
    unsigned char* HMAC(
        const EVP_MD* evp_md, const void* key, int key_len, const unsigned char* data, size_t data_len,
        unsigned char* md, unsigned int* md_len,
    )

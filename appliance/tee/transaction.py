"""The bytes of an EIP-1559 transaction: the one encoder of what the wallet signs and of what goes to the chain.

RLP and recovery come from the libraries that web3 brings; they are imported on first use, because they take most of a
second to load and a node signs at most one transaction in its life.
"""

from appliance.tee.port import Eip1559Transaction
from kmscore.errors import InvariantBroken, Reason, Rejected
from kmscore.keccak import keccak256
from kmscore.pop import parse_wallet

TYPE_BYTE = b"\x02"  # EIP-2718 type of EIP-1559
SECP256K1_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141  # SEC 2 §2.4.1
_SIGNED_FIELDS = 12


def transaction_digest(tx: Eip1559Transaction) -> bytes:
    """The 32 bytes the wallet signs: keccak256(0x02 ‖ RLP of the nine unsigned fields). InvariantBroken."""
    return keccak256(TYPE_BYTE + _rlp(_unsigned_fields(tx)))


def encode_signed_transaction(tx: Eip1559Transaction, sig65: bytes) -> bytes:
    """0x02 ‖ RLP of the twelve fields, from a signature r ‖ s ‖ v with v 0 or 1. InvariantBroken."""
    if len(sig65) != 65 or sig65[64] > 1:
        raise InvariantBroken("a transaction signature must be 65 bytes with v 0 or 1")
    r, s = int.from_bytes(sig65[:32]), int.from_bytes(sig65[32:64])
    return TYPE_BYTE + _rlp([*_unsigned_fields(tx), sig65[64], r, s])


def verify_signed_transaction(raw: bytes, tx: Eip1559Transaction, wallet: str) -> bytes:
    """`raw`, once it is known to be exactly `tx` signed by `wallet` with s in the lower half (EIP-2).

    Rejected(MALFORMED) when it is not the encoding of a signed type-2 transaction, Rejected(SIGNATURE) when it is
    another transaction, another signer or a malleable signature.
    """
    import rlp  # type: ignore[import-untyped]
    from eth_keys.datatypes import Signature
    from eth_keys.exceptions import BadSignature
    from eth_utils.exceptions import ValidationError

    if not raw.startswith(TYPE_BYTE):
        raise Rejected(Reason.MALFORMED, "the transaction is not of type 2")
    try:
        decoded = rlp.decode(raw[1:], strict=True)
    except (rlp.exceptions.RLPException, RecursionError):  # the latter for lists nested thousands deep
        raise Rejected(Reason.MALFORMED, "the transaction is not RLP") from None
    if not isinstance(decoded, list) or len(decoded) != _SIGNED_FIELDS:
        raise Rejected(Reason.MALFORMED, "the transaction does not have twelve fields")
    v_field, r_field, s_field = decoded[9:]
    if (
        not all(isinstance(part, bytes) and len(part) <= 32 for part in (v_field, r_field, s_field))
        or v_field > b"\x01"
    ):
        raise Rejected(Reason.SIGNATURE, "the transaction's signature has a wrong form")
    v, r, s = (int.from_bytes(part) for part in (v_field, r_field, s_field))
    if s > SECP256K1_ORDER // 2:
        raise Rejected(Reason.SIGNATURE, "the transaction's signature is malleable")
    if raw != encode_signed_transaction(tx, r.to_bytes(32) + s.to_bytes(32) + bytes([v])):
        raise Rejected(Reason.SIGNATURE, "the transaction is not the one that was to be signed")
    try:
        signer = Signature(vrs=(v, r, s)).recover_public_key_from_msg_hash(transaction_digest(tx)).to_address()
    except (BadSignature, ValidationError):
        raise Rejected(Reason.SIGNATURE, "the transaction's signature does not recover") from None
    if signer != wallet:
        raise Rejected(Reason.SIGNATURE, "the transaction is signed by another wallet")
    return raw


def _unsigned_fields(tx: Eip1559Transaction) -> list[int | bytes | list[bytes]]:
    numbers = (tx.chain_id, tx.nonce, tx.max_priority_fee_per_gas, tx.max_fee_per_gas, tx.gas_limit, tx.value)
    if min(numbers) < 0 or max(numbers) >= 1 << 256 or tx.chain_id == 0:
        raise InvariantBroken("a transaction's numbers must be 256-bit and its chain id above 0")
    try:
        to = bytes.fromhex(parse_wallet(tx.to)[2:])
    except Rejected as error:
        raise InvariantBroken("a transaction's recipient must be a wallet") from error
    fees: list[int | bytes | list[bytes]] = [tx.max_priority_fee_per_gas, tx.max_fee_per_gas]
    return [tx.chain_id, tx.nonce, *fees, tx.gas_limit, to, tx.value, tx.data, []]


def _rlp(fields: list[int | bytes | list[bytes]]) -> bytes:
    import rlp

    encoded: bytes = rlp.encode(fields)
    return encoded

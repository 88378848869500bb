"""The inner messages of `/sync` that this node sends and understands, with their names and limits (protocol §5)."""

DELTA = "delta"
SNAPSHOT_REQUEST = "snapshot_request"
SNAPSHOT_PAGE_REQUEST = "snapshot_page_request"
DIGEST_REQUEST = "digest_request"
RECORDS_REQUEST = "records_request"
MASTER_SECRET_REQUEST = "master_secret_request"  # noqa: S105 - a message type

# Extensions are announced in every inner answer and used only towards peers that announce them.
EXT_SNAPSHOT_PAGES = "snapshot_pages"
EXT_ANTI_ENTROPY = "anti_entropy"
EXTENSIONS = (EXT_SNAPSHOT_PAGES, EXT_ANTI_ENTROPY)

# store §4: at most 500 records and 1.5 MiB a request. A body is about four times its ciphertexts (hex in JSON in hex).
PUSH_RECORDS = 500
PUSH_RECORD_BYTES = 360_000
# The inner object of such a request: its hex and the envelope around it stay below 1.5 MiB.
MAX_PUSH_INNER_BYTES = 785_000
# Of snapshot pages. The other side parses a page in one step, which must not keep its event loop for 5 ms.
PAGE_RECORDS = 500
PAGE_RECORD_BYTES = 1 << 19
MAX_PAGE_INNER_BYTES = 4 << 20

MAX_SMALL_ANSWER_BYTES = 256 * 1024
MAX_PAGE_ANSWER_BYTES = 32 << 20

"""The sizes, counts and depths of the contract (docs/control-plane-api.md, section "Limits")."""

BODY_MAX_BYTES = 1 << 20  # an agent's request or a control plane's answer
REPORT_MAX_BYTES = 4 << 20
ADMIN_MAX_BYTES = 16 << 20  # operators submit work in bulk
ITEM_MAX_BYTES = 256 * 1024  # one reported result
JSON_DEPTH_MAX = 32  # a trace's observation is 6 deep; nothing real comes near
OBSERVATIONS_MAX = 512
REPORT_ITEMS_MAX = 500  # one group of the server's commit
LEASES_PER_CLAIM_MAX = 1000
LEASE_IDS_PER_EXTEND_MAX = 1000
LINE_MAX_BYTES = ITEM_MAX_BYTES + 64  # of a stream: an item and its number
LINES_MAX = 5000  # of one stream; then another
STREAM_MAX_MS = 55_000  # how long a stream may last
STREAM_MAX_BYTES = 64 << 20  # of one stream's body

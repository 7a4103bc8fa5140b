"""How a challenge travels, for the server that writes it and the clients that look for it.

A refusal's problem carries it as `challenge`, an object. For clients that keep nothing of an answer but its `error`, that text is the
prefix and then the same object as base64 of JSON. The proof goes back in one header. A paid request whose model server failed gets a new
proof, solved already, as `retry_proof`.
"""

CHALLENGE_PREFIX = "proof of work required: "
CHALLENGE_STATUSES = (401, 402, 403, 428, 429)  # those that a guard may be told to use
PROOF_HEADER = "guard-proof"
PROOF_BYTES = 4096  # a longer header is not looked at
RETRY_PROOF = "retry_proof"

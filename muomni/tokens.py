"""The only table of special token ids.

Special tokens hold ids 0..N_SPECIAL-1 in this order; the tokenizer is trained with exactly this
list, every entry flagged special, so text typed by a user can never produce one of them.
"""

PAD, BOS, EOS, USER, ASSISTANT, IMAGE, AUDIO, HEARD = range(8)
"""PAD fills rows; BOS starts a document; EOS ends a turn or document; USER and ASSISTANT open a turn;
IMAGE and AUDIO are placeholders whose embeddings are replaced by media features;
HEARD ends what the ear spells of a clip."""

SPECIAL_TOKENS: tuple[str, ...] = (
    "<|pad|>",
    "<|bos|>",
    "<|eos|>",
    "<|user|>",
    "<|assistant|>",
    "<|image|>",
    "<|audio|>",
    "<|heard|>",
)

N_SPECIAL: int = len(SPECIAL_TOKENS)

IGNORE_INDEX: int = -100
"""Label of a position without a target."""

"""The sparse decoder: tokens, or embeddings of anything else, to the distribution of the next token."""

from ninthsky.model.decoder import Decoder
from ninthsky.model.shape import Shape

__all__ = ["Decoder", "Shape"]

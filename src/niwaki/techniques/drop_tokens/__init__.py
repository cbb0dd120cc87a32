"""`drop-tokens`: let go of the tokens to which little attention is paid, layer by layer."""

from niwaki.techniques.drop_tokens.technique import DropTokens

__all__ = ["DropTokens"]

"""`replace`: runs of layers by one layer each, layers by narrower ones, little by little while the model trains."""

from niwaki.techniques.replace.technique import Replace

__all__ = ["Replace"]

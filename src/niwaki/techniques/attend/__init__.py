"""`attend`: attention in less than quadratic time, in a trained model, and longer inputs."""

from niwaki.techniques.attend.technique import Attend

__all__ = ["Attend"]

"""Carry out a recipe into a run folder.

job.py     the verb `compress`, and what `finetune` shares with it
steps.py   one step after the other, each kept under the hash of all that went into it
folder.py  what is in a run folder, and what is written into it
"""

from niwaki.run.folder import Run
from niwaki.run.job import STREAMED, carry_out_into, check_recipe, compress, formats_of

__all__ = ["STREAMED", "Run", "carry_out_into", "check_recipe", "compress", "formats_of"]

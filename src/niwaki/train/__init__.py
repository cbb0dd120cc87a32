"""`Train`, the one training loop: a model and its companions learn together.

Hugging Face Accelerate lies underneath (mixed precision, several processes, checkpoints). Model and companions train
inside one joint module. All scaffolding goes up before the optimizer is made and comes down after it is gone.

step.py     the step of a recipe, and the loop
joint.py    model and companions as one module with one loss
batches.py  which rows stand in which batch
bar.py      what it shows meanwhile
"""

from niwaki.train.batches import length_bucketed
from niwaki.train.step import Train

__all__ = ["Train", "length_bucketed"]

"""`race`: which of several parents to start from, when all are compressed to one budget.

verb.py     the verb: parents made, recipes tried, finalists measured together
parents.py  what races: models, and relatives with fewer layers
recipes.py  which recipes each parent tries, from the mildest
standing.py how finalists stand after their session
record.py   what came of it: the table and the verdict
"""

from niwaki.race.parents import Parent, read_parents
from niwaki.race.recipes import read_recipes
from niwaki.race.record import Entrant, Race, Trial
from niwaki.race.verb import race

__all__ = ["Entrant", "Parent", "Race", "Trial", "race", "read_parents", "read_recipes"]

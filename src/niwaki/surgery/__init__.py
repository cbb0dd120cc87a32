"""The edits that change a model for good, and the journal that writes them down.

Techniques decide; surgery does; the journal remembers. Every edit is one function that changes the model in place,
appends one JSON record to the model's journal, and works on empty (meta) tensors too: `niwaki.checkpoint` loads a model
by replaying its journal on a base without weights.

journal.py     the journal, what makes a function an edit, and doing edits again
layers.py      keep_layers
units.py       narrow_heads, narrow_neurons, narrow_hidden, narrow_pooler
vocabulary.py  narrow_vocabulary
clustering.py  cluster_linear, cluster_embedding
scaling.py     scale_inputs
symmetries.py  reorder_neurons, turn_heads
factoring.py   factor_linear, factor_embedding
attention.py   swap_attention, extend_positions
packing.py     quantize_linear, quantize_embedding, sparsify_linear
ties.py        a language head that is the word table
exits.py       add_exit, set_thresholds
dropping.py    drop_tokens
sharing.py     tie_weights, relax_linear
cutting.py     what the edits cut with
"""

from niwaki.surgery.attention import extend_positions, swap_attention
from niwaki.surgery.clustering import cluster_embedding, cluster_linear, entropy_coded
from niwaki.surgery.dropping import drop_tokens, is_dropping, refuse_dropping, require_droppable
from niwaki.surgery.exits import add_exit, set_thresholds
from niwaki.surgery.factoring import factor_embedding, factor_linear
from niwaki.surgery.journal import EDITS, Record, edit, is_plain, journal_of, replay
from niwaki.surgery.layers import keep_layers
from niwaki.surgery.packing import is_sparse, quantize_embedding, quantize_linear, sparsify_linear
from niwaki.surgery.scaling import scale_inputs
from niwaki.surgery.sharing import firsts_of, layers_together, refuse_tied, relax_linear, tie_weights, ties_of
from niwaki.surgery.symmetries import can_turn, reorder_neurons, turn_heads
from niwaki.surgery.ties import tie_head, tied_names
from niwaki.surgery.units import narrow_heads, narrow_hidden, narrow_neurons, narrow_pooler
from niwaki.surgery.vocabulary import fixed_tokens, narrow_vocabulary, vocabulary_of, word_table

__all__ = [
    "EDITS",
    "Record",
    "add_exit",
    "can_turn",
    "cluster_embedding",
    "cluster_linear",
    "drop_tokens",
    "edit",
    "entropy_coded",
    "extend_positions",
    "factor_embedding",
    "factor_linear",
    "firsts_of",
    "fixed_tokens",
    "is_dropping",
    "is_plain",
    "is_sparse",
    "journal_of",
    "keep_layers",
    "layers_together",
    "narrow_heads",
    "narrow_hidden",
    "narrow_neurons",
    "narrow_pooler",
    "narrow_vocabulary",
    "quantize_embedding",
    "quantize_linear",
    "refuse_dropping",
    "refuse_tied",
    "relax_linear",
    "reorder_neurons",
    "replay",
    "require_droppable",
    "scale_inputs",
    "set_thresholds",
    "sparsify_linear",
    "swap_attention",
    "tie_head",
    "tie_weights",
    "tied_names",
    "ties_of",
    "turn_heads",
    "vocabulary_of",
    "word_table",
]

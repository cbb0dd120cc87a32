"""The modules that surgery puts in place of a model's own."""

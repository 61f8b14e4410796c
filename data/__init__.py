"""Text on its way to the model: the tokenizer, the preparation of a reader's own text, and the built-in world."""

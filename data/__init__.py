"""What the default run reads: the built-in world, its annotations, documents, tokenizer, batches and the teacher cache."""

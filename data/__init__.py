"""What the default run reads: world, annotations, documents, tokenizer, batches, the teacher cache."""

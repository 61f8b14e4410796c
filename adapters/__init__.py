"""The outside world: LLM endpoints, published task files, Hugging Face models, downloads."""

"""Loading of pretrained models by path, by name or from the Hugging Face hub."""

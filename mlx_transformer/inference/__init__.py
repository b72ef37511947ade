"""Generation, scoring and alignment of texts."""

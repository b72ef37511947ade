"""Documents: files whose texts are translated and whose structure and markup stay."""

"""Search over token ids: greedy decoding, beam search and sampling."""

"""TokenAR: an autoregressive transformer over image tokens that draws several given subjects into one picture."""

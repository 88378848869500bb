"""Identity providers: where the two key pairs live and what may be asked of them."""

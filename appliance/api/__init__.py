"""HTTP: one module per endpoint family; parse, call, encode, and errors to answers in one place."""

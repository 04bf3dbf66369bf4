"""Guards under HTTP: what a request sees of them, and what becomes of their errors."""

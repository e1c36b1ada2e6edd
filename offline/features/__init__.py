"""Features of whole files, computed by the code that serves them."""

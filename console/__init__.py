"""The console, in which people work on alerts; it imports the stream, never the other way round."""

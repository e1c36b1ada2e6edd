"""One worker process: the Faust app, micro-batches and the commit protocol."""

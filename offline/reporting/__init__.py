"""Reports: the HTML page of a training run and the model card."""

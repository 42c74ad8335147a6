"""Release: a model, its embeddings, catalogue, samples, report and card, in one folder to upload."""

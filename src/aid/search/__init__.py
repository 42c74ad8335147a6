"""Search: Checkpoints, dataset and judge -> block weights, by what is measured. Above merge, generate and
evaluate, since it needs all three."""

"""Search: Checkpoints, dataset and judge -> block weights, by what is measured. Above merge, generate and
evaluate, since it needs all three. Called, it is the verb `merge search` of `aid.search.run`."""

from aid.core.room import callable_room

callable_room(__name__, "aid.search.run")

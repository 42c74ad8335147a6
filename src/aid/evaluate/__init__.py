"""Judge and evaluate: Gallery -> Report. Called, it is the verb `evaluate` of `aid.evaluate.run`."""

from aid.core.room import callable_room

callable_room(__name__, "aid.evaluate.run")

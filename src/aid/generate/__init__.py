"""Generate: Checkpoint and shots -> Gallery. Called, it is the verb of `aid.generate.run`."""

from aid.core.room import callable_room

callable_room(__name__, "aid.generate.run")

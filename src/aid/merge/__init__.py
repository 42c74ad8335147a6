"""Merge: Checkpoints -> Checkpoint, block by block. Called, it is the verb of `aid.merge.run`."""

from aid.core.room import callable_room

callable_room(__name__, "aid.merge.run")

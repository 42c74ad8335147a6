"""Release: a model, its embeddings, catalogue, samples, report and card, in one folder to upload.

Called, it is the verb of `aid.release.run`.
"""

from aid.core.room import callable_room

callable_room(__name__, "aid.release.run")

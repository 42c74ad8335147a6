"""prepare: folders of pictures with tags -> Dataset."""

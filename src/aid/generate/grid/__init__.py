"""Grids: one shot varied along up to three axes, drawn once a cell, labelled, and a page to look through."""

"""What a GPU node without a network needs to run g4lab, in parcels of a limited size.

A *recipe* (py312-torch211.toml and its .lock) says which wheels travel, what is cut from them and what stays behind;
a *node* file says what is there already. Both are checked against the wheels' own metadata before anything is packed.
"""

from g4lab.bundle.make import make
from g4lab.bundle.node import Node, read_node
from g4lab.bundle.recipe import Recipe, read_recipe

__all__ = ["Node", "Recipe", "make", "read_node", "read_recipe"]

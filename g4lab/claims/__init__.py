"""What this project claims, as data: each claim with its kind, where it is proven, by which command, and what is not.

`load` reads and checks data/claims.yaml and data/features.yaml; `tables` makes of them frames, Markdown and README's
tables; `draw` makes figures.
"""

from g4lab.claims.model import Book, Claim, Feature, Proof, load

__all__ = ["Book", "Claim", "Feature", "Proof", "load"]

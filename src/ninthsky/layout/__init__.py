"""Before a run: a model and a cluster -> ranked cuts with their memory, step time and traffic. numpy only."""

from ninthsky.layout.cluster import CHIPS, Chip, Cluster
from ninthsky.layout.cost import estimate
from ninthsky.layout.cut import Cut, Cuts
from ninthsky.layout.search import Problem, search
from ninthsky.layout.shape import Sizes, Work

__all__ = ["CHIPS", "Chip", "Cluster", "Cut", "Cuts", "Problem", "Sizes", "Work", "estimate", "search"]

"""Prune groups: what has to be cut together, and cutting it (`analyse`, `cut`)."""

from greencc.core.groups.model import PruneGroup, Reader, Site, Structure
from greencc.core.groups.roles import Role
from greencc.core.groups.structure import analyse, cut

__all__ = ["PruneGroup", "Reader", "Role", "Site", "Structure", "analyse", "cut"]

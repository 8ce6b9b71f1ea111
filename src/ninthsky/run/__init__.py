"""A run: stages with their reasons, the run folder, its manifests and events, and the report made from them."""

from ninthsky.run.stage import Stage, StageContext

__all__ = ["Stage", "StageContext"]

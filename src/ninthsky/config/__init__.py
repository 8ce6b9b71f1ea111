"""run.toml -> typed settings. One file describes a whole run; unknown keys are errors; one dial `size` derives the rest."""

from ninthsky.config.load import SettingsError, load_settings
from ninthsky.config.schema import Settings

__all__ = ["Settings", "SettingsError", "load_settings"]

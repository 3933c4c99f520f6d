"""Settings: the preset schema, the Serve arguments, and the YAML files that fill them. Imports nothing of ours."""

from configs.schema import ConfigError, Preset, load_preset, preset_names

__all__ = ["ConfigError", "Preset", "load_preset", "preset_names"]

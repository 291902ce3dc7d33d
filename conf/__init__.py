"""The YAML of the configuration, packaged so that Hydra finds it as `pkg://cdiff.conf` from any directory."""

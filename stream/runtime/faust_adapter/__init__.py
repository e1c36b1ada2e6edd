"""faust_adapter."""

"""The Faust app: transport, table, order of effects, worker."""

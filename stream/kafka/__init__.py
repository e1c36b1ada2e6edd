"""Everything that speaks to Kafka, except through Faust."""

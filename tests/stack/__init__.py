"""``make compose-test``: the deployment of ``docker-compose.yml``, really run, broken and scaled."""

"""PostgreSQL: implements the ports of the services. Driver errors become ours in `borders`, nowhere else."""

"""When things happen: Prefect flows, launching, the MLflow registry and the command line."""

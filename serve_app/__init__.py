"""The graph on a cluster: deployments, HTTP and handle API, voice stores. Ray and FastAPI live here."""

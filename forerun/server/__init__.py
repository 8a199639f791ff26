"""`forerun serve`: a compiled model behind OpenAI's HTTP API."""

"""The service on a cluster: HTTP requests, calls and handles come in; answers, sound and metrics go out.

Imports `stages`, `webrtc` and `configs`. Inside: `app`, `ingress`, `http` -> `recordings`, `calls` -> `graph` ->
`voices` -> what serves all (forms, uploads, decoders, errors, metrics).
"""

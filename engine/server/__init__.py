"""The engine behind HTTP: OpenAI's routes, streamed answers, Prometheus metrics.

A request passes `app` (routes), `parsing` and `protocol` (what it may say), `answers` (its place
and its tokens on the event loop) and `worker` (the thread that owns an engine); `replies` puts the
tokens into the words of `responses`.
"""

"""An OpenAI-compatible server over the engine; needs the extra `serve`. Read `app.py` first."""

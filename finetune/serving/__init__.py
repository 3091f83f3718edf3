"""A finished run behind HTTP: uploads -> images -> batches -> answers, with limits, a page, metrics and a model card.

`app.create_app` puts it together; only `app`, `gate`, `routes` and `server` import packages of the extra `serve`.
"""

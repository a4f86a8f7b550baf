"""The HTTP faces that programs of another platform already speak: what arrives at the listener ends here.

`app` checks, verifies, decodes and dispatches; `wire` knows the formats, `shapes` and `validation` the models. A folder
a service holds its model and its operations. Not for sockets (`http`) and not for signatures (`security`). Read
`app.py`.
"""

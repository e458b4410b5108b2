"""`python deploy.py` serves the application of hello.py at /hello. Other applications are left as they are."""

import ray
from hello import app
from ray import serve

# Inside a Ray job the working directory is the job's own: see docs/develop.md.
ray.init(runtime_env={"working_dir": "."})
serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": 8000})  # unless Serve runs already
serve.run(app, name="hello", route_prefix="/hello")

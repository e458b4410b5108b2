"""`python deploy.py` serves the application of deepseek.py at /. Other applications are left as they are."""

from deepseek import llm_app
from ray import serve

serve.run(llm_app, name="llm-deepseek", route_prefix="/")

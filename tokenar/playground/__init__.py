"""A page of this machine to draw with a model: pictures and a prompt in, pictures as they grow out."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

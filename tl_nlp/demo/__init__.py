"""The page to try models in; the only part that knows gradio."""

# Serves the page of the runs mounted at /runs, or of names of the Hugging Face Hub:
#   docker build -t tl-nlp .
#   docker run -p 127.0.0.1:7860:7860 -v "$PWD/runs:/runs:ro" -e TL_NLP_PASSWORD=... tl-nlp
#   docker run -p 127.0.0.1:7860:7860 -e TL_NLP_PASSWORD=... [-e HF_TOKEN=...] tl-nlp alice/sentiment
# For a GPU build with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 and run with --gpus all.
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    TL_NLP_RUNS=/runs \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860

RUN useradd --create-home --uid 1000 app
WORKDIR /app

RUN pip install --index-url "${TORCH_INDEX}" "torch>=2.9,<2.14"
COPY pyproject.toml README.md LICENSE ./
COPY tl_nlp ./tl_nlp
# hadolint ignore=DL3013
RUN pip install ".[demo,gpu,samples]"
COPY app.py ./

USER 1000
VOLUME /runs
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/')"]
ENTRYPOINT ["python", "app.py"]

FROM python:3.13-slim

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /app

# The dependencies first, in a layer that the sources don't touch.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['service'], sep='\n')" > requirements.txt \
    && pip install -r requirements.txt

COPY README.md LICENSE.md ./
COPY src ./src
RUN pip install --no-deps .

RUN useradd --create-home --uid 10001 asyncguard
USER asyncguard

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["asyncguard", "serve", "--host", "0.0.0.0", "--port", "8000"]

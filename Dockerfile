# medkit on one GPU:
#   docker build --tag medkit .
#   docker run --rm --gpus all --volume "$PWD/results:/medkit/results" medkit check recommended
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Unsloth's kernels use Triton, which compiles with gcc and Python's headers at run time.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git gcc libc6-dev python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home researcher && mkdir /medkit && chown researcher /medkit
USER researcher
RUN mkdir -p /home/researcher/.cache/medkit /home/researcher/.cache/huggingface
WORKDIR /medkit
RUN python3 -m venv /home/researcher/venv
ENV PATH=/home/researcher/venv/bin:$PATH MEDKIT_CACHE=/home/researcher/.cache/medkit

# The same pins as in environment.yml: pyproject.toml with its extra gpu (matching torch, CUDA and xformers).
COPY --chown=researcher pyproject.toml README.md LICENSE ./
COPY --chown=researcher medkit/__init__.py medkit/__init__.py
# hadolint ignore=DL3013
RUN pip install '.[gpu]' && pip uninstall --yes medkit
COPY --chown=researcher . .
RUN pip install --no-deps --editable .

ENTRYPOINT ["medkit"]
CMD ["--help"]

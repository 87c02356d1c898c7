# CPU:  docker build -t pinxit . && docker run --rm -v "$PWD:/work" pinxit --help
# CUDA: docker build -t pinxit-cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#       docker run --rm --gpus all -v "$PWD:/work" pinxit-cuda --help
FROM python:3.12-slim AS wheel
COPY . /source
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /dist /source

FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch
RUN pip install --no-cache-dir /dist/*.whl && rm -r /dist
RUN useradd --create-home pinxit
USER pinxit
WORKDIR /work
ENTRYPOINT ["pinxit"]

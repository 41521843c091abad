# Trains on NVIDIA GPUs. The CUDA libraries come with jax[cuda13]; the host brings the driver.
#   docker build -t jaxdpo .
#   docker run --gpus all -v $PWD:/work jaxdpo train @configs/lora.yaml model.path=… data.path=…
FROM python:3.12-slim
COPY . /opt/jaxdpo
RUN pip install --no-cache-dir '/opt/jaxdpo[cuda,judge]'
WORKDIR /work
ENTRYPOINT ["jaxdpo"]

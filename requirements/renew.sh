#!/bin/sh
# Exact versions of everything, without download addresses: `make lock` runs this. Made on Linux with the oldest
# Python that Graft supports, so that every newer one finds them too.
set -eu
cd "$(dirname "$0")"
export CUSTOM_COMPILE_COMMAND="make lock"
compile() {
    pip-compile --quiet --upgrade --strip-extras --no-annotate --no-emit-index-url --no-emit-trusted-host \
        --no-emit-find-links --allow-unsafe --constraint held.txt "$@"
}
compile ../pyproject.toml --output-file serve.txt
compile ../pyproject.toml --extra train --extra backbone --constraint serve.txt --output-file train.txt
compile ../pyproject.toml --extra shots --constraint train.txt --output-file shots.txt
compile ../pyproject.toml --extra grpc --constraint train.txt --output-file grpc.txt
compile ../pyproject.toml --extra train --extra backbone --extra grpc --extra otel --extra dev --constraint train.txt --output-file dev.txt
# A build of torch for one kind of machine carries a label that no index knows, or asks for a GPU's libraries, which
# pip finds by itself where the build it takes wants them.
sed -i -E -e 's/^(torch==[0-9.]+)\+[a-z0-9]+/\1/' -e '/^(nvidia-|cuda-|triton==)/d' train.txt dev.txt
# onnxruntime-gpu brings the same files as onnxruntime: never both.
sed -E 's/^onnxruntime==/onnxruntime-gpu==/' serve.txt > gpu.txt
# Its extras name the CUDA and cuDNN that its build wants; the rest of what they ask for stands in gpu.txt.
{
    echo '# CUDA and cuDNN for the image `gpu`, from the extras of onnxruntime-gpu: a machine has its own. By `make lock`.'
    sed -n -E 's/^onnxruntime-gpu==/onnxruntime-gpu[cuda,cudnn]==/p' gpu.txt |
        compile - --no-header --constraint gpu.txt --output-file - | grep '^nvidia-'
} > cuda.txt.new
mv cuda.txt.new cuda.txt

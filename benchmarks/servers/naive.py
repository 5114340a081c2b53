"""What most would write: FastAPI, UploadFile, Pillow, session.run, a dict."""

import io

import numpy as np
import uvicorn
from fastapi import FastAPI, File, Request, Response, UploadFile
from graph import Graphs, port_and_bundle

app = FastAPI()
port, folder = port_and_bundle()
graphs = Graphs(folder)


@app.post("/classify")
async def classify(image: UploadFile):
    pixels = graphs.pixels(await image.read())
    return {"results": graphs.classify(pixels[None])}


@app.post("/classify-raw")
async def classify_raw(request: Request):
    pixels = graphs.pixels(await request.body())
    return {"results": graphs.classify(pixels[None])}


@app.post("/classify-many")
async def classify_many(image: list[UploadFile] = File()):  # noqa: B008
    pixels = np.stack([graphs.pixels(await each.read()) for each in image])
    return {"results": graphs.classify(pixels)}


@app.post("/anomaly")
async def anomaly(image: UploadFile):
    pixels = graphs.pixels(await image.read())
    return {"results": [{"reconstruction_error": error} for error in graphs.errors(pixels[None])]}


@app.post("/encode")
async def encode(image: UploadFile):
    buffer = io.BytesIO()
    np.save(buffer, graphs.encode(graphs.pixels(await image.read())[None]))
    return Response(buffer.getvalue(), media_type="application/x-npy")


@app.post("/v2/models/classifier/infer")
async def infer(request: Request):
    [taken] = (await request.json())["inputs"]
    images = np.array(taken["data"], np.uint8).reshape(taken["shape"])
    chances = graphs.probabilities(images)
    output = {"name": "probabilities", "datatype": "FP32", "shape": chances.shape, "data": chances.ravel().tolist()}
    return {"model_name": "classifier", "outputs": [output]}


@app.get("/healthz")
async def healthz():
    return {"status": "ok"}


if __name__ == "__main__":
    uvicorn.run(app, port=port, log_level="warning")

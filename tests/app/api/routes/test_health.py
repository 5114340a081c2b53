import shutil
from pathlib import Path

import httpx
from support import assert_problem, serving

from app.bundle.drawings import garment
from app.bundle.encode import png
from app.settings import Settings


def test_a_service_with_a_model_is_alive_and_ready(client: httpx.Client) -> None:
    for path in ("/healthz", "/readyz"):
        assert client.get(path).json() == {"status": "ok"}


def test_a_service_whose_bundles_are_all_refused_lives_and_says_why_it_is_not_ready(
    models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tiny/1/head.onnx").unlink()
    with serving(Settings(models=tmp_path)) as client:
        assert client.get("/healthz").status_code == 200
        assert_problem(client.get("/readyz"), 503, "not-ready", "tiny/1/head.onnx")
        assert client.get("/v1/models").json()["models"] == []
        answer = client.post("/v1/classify", files={"image": png(garment("bag"))})
        assert_problem(answer, 503, "not-ready")

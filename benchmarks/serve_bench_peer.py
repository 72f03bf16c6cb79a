"""The peer of the server benchmark: what one writes with the library in thirty lines of FastAPI.

    python benchmarks/serve_bench_peer.py STORE_URL N_PATIENTS threads|loop

All patients' detectors are loaded once and held as `Personalizer` objects; a request is judged by its
own patient's object, alone. Neither tokens nor batches nor a bounded cache. ``threads``: a plain function,
which FastAPI runs in a pool of threads; ``loop``: a coroutine, so one request after the other.
"""

import sys

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from serve_bench_patients import patient_name

from metaecg import load_base
from metaecg.data.records import Record
from metaecg.data.windows import cut_at
from metaecg.serve.adapter_file import load_adapter
from metaecg.serve.store import Store


class Question(BaseModel):
    """A window of one lead in millivolts."""

    fs_hz: float
    unit: str
    lead_names: list[str]
    signal: list[float]


def make_app(store_url: str, n_patients: int, kind: str) -> FastAPI:
    """Load every detector and return the app."""
    torch.set_num_threads(1)
    base, store = load_base("va-base"), Store(store_url)
    org_id = store.list_orgs()[0].org_id
    names = [patient_name(i) for i in range(n_patients)]
    detectors = {name: load_adapter(store.read_adapter(org_id, name, 1), base) for name in names}
    store.close()
    positive = list(base.classes).index("va")
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict:
        return {"status": "ready"}

    def predict(subject_id: str, question: Question) -> dict:
        record = Record(
            record_id=subject_id,
            subject_id=subject_id,
            signal_mv=np.array([question.signal], dtype=np.float32),
            fs_hz=question.fs_hz,
            lead_names=tuple(question.lead_names),
        )
        windows, _ = cut_at(record, np.zeros(1), base.preprocessing)
        probability = detectors[subject_id].predict_proba(windows)[0, positive]
        return {"windows": [{"start_s": 0.0, "probability": float(probability)}]}

    async def predict_in_loop(subject_id: str, question: Question) -> dict:
        return predict(subject_id, question)

    chosen = {"threads": predict, "loop": predict_in_loop}[kind]
    app.post("/v1/patients/{subject_id}/predict")(chosen)
    return app


def main(store_url: str, n_patients: int, kind: str) -> None:
    """Serve on a free port and say which."""
    app = make_app(store_url, n_patients, kind)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    sockets = [uvicorn.Config(None, host="127.0.0.1", port=0).bind_socket()]
    print(f"peer: http://127.0.0.1:{sockets[0].getsockname()[1]}/", flush=True)
    server.run(sockets=sockets)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
